//! The prompts of the matrix.

/// Name and text of each, in the order measured.
pub const PROMPTS: &[(&str, &str)] = &[
    (
        "english_technical",
        "Explain how a B-tree index speeds up range queries in a relational database. Describe what a node holds, how a \
         split keeps the tree balanced, and why wide nodes suit disks that read whole pages. Then compare it with a log \
         structured merge tree for a workload of mostly writes.",
    ),
    (
        "chinese",
        "\u{8bf7}\u{7528}\u{901a}\u{4fd7}\u{7684}\u{8bed}\u{8a00}\u{89e3}\u{91ca}\u{4ec0}\u{4e48}\u{662f}\u{6df7}\u{5408}\
         \u{4e13}\u{5bb6}\u{6a21}\u{578b}\u{ff0c}\u{5b83}\u{4e0e}\u{666e}\u{901a}\u{7684}\u{795e}\u{7ecf}\u{7f51}\u{7edc}\
         \u{6709}\u{4ec0}\u{4e48}\u{4e0d}\u{540c}\u{ff0c}\u{4e3a}\u{4ec0}\u{4e48}\u{5b83}\u{53ef}\u{4ee5}\u{8282}\u{7701}\
         \u{8ba1}\u{7b97}\u{91cf}\u{3002}\u{8bf7}\u{4e3e}\u{4e00}\u{4e2a}\u{4f8b}\u{5b50}\u{3002}",
    ),
    (
        "code",
        "Write a function in Rust that merges two sorted slices into a new vector without comparing more often than it has \
         to. Give it a generic element type, document its complexity, and add unit tests for empty slices, for equal \
         elements and for slices of very different lengths.",
    ),
    (
        "math_reasoning",
        "A train leaves the first town at 9:20 and travels at 84 kilometres per hour. A second train leaves the other town, \
         273 kilometres away, at 10:05 and travels towards it at 112 kilometres per hour. At what time do they meet, and how \
         far from the first town? Show every step.",
    ),
    (
        "creative",
        "Write the opening of a story about a lighthouse keeper who finds that the light she tends has been answering to \
         another light, far out where the charts show no land. Keep it quiet and exact, with weather, tools and hands, and \
         end the scene before anything is explained.",
    ),
];

/// The text of a prompt.
pub fn text(name: &str) -> Option<&'static str> {
    PROMPTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Tokens in place of a prompt, for a model without a tokenizer: as many for each name, others for each.
pub fn tokens(name: &str, vocab_size: u32) -> Vec<u32> {
    const COUNT: usize = 48;
    let row = PROMPTS.iter().position(|(known, _)| *known == name).unwrap_or(PROMPTS.len());
    crate::case::synthetic(row + 1, COUNT, vocab_size)
}
