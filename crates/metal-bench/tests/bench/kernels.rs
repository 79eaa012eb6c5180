//! Kernels that are held against stock: their sources, what they are asked, and what is done to them to
//! see that it is noticed.

use metal_bench::{Contract, Launch, Machine, Program, Translation, mlx};

use crate::{
    compiler,
    values::{Float, first_difference},
};

/// The text of a file of the overlay, as the compiler sees it.
pub(crate) fn read(file: &str) -> String {
    compiler()
        .read(&mlx::overlay().join(file), &[mlx::overlay(), mlx::include()])
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Compiles the kernels of these texts whose names are `wanted`.
pub(crate) fn build(
    contract: Contract,
    texts: &[String],
    wanted: impl Fn(&str) -> bool,
) -> Program {
    let translated: Vec<Translation> = texts
        .iter()
        .map(|text| Translation::of(text).unwrap_or_else(|error| panic!("{error}")))
        .collect();
    let names = |t: &Translation| t.kernels().filter(|k| wanted(k)).map(str::to_owned).collect();
    let all: Vec<_> = translated.iter().map(|t| (t, names(t))).collect();
    Program::build(compiler(), contract, &all).unwrap_or_else(|error| panic!("{error}"))
}

/// One launch of ours, and what stock's launches made of the same operands.
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) launch: Launch,
    /// For each output, in the order in which they are bound.
    pub(crate) expected: Vec<(Float, Vec<u8>)>,
}

impl Case {
    /// What is not as it should be: a fault, a byte that was not written, or other bits.
    pub(crate) fn run(&self, machine: &mut Machine) -> Result<(), String> {
        let outcome = machine.launch(&self.launch).map_err(|error| match error.fault() {
            Some(fault) => fault.to_string(),
            None => panic!("{}: {error}", self.what),
        })?;
        for (output, (kind, expected)) in outcome.outputs.iter().zip(&self.expected) {
            if let Some(first) = output.unwritten.first() {
                return Err(format!("unwritten: byte {first} of buffer {}", output.index));
            }
            if let Some(difference) = first_difference(*kind, expected, &output.bytes) {
                return Err(format!("differs: {difference}"));
            }
        }
        Ok(())
    }
}

/// Runs all cases, which all have to be as stock.
pub(crate) fn equal_stock(machine: &mut Machine, cases: impl Iterator<Item = Case>) -> usize {
    let mut count = 0;
    for case in cases {
        case.run(machine).unwrap_or_else(|reason| panic!("{}: {reason}", case.what));
        count += 1;
    }
    count
}

/// A change of a kernel's text that makes it wrong.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

/// Makes one mutant after the other and runs the cases until one notices.
pub(crate) fn all_caught(
    contract: Contract,
    file: &str,
    wanted: impl Fn(&str) -> bool,
    mutants: &[Mutant],
    cases: &[Case],
) {
    let text = read(file);
    let mut sound = build(contract, std::slice::from_ref(&text), &wanted).start();
    for case in cases {
        case.run(&mut sound).unwrap_or_else(|reason| panic!("{}: {reason}", case.what));
    }
    let mut missed = Vec::new();
    for Mutant { name, from, to } in mutants {
        assert_eq!(text.matches(from).count(), 1, "{file}: mutant '{name}' changes '{from}'");
        let mut machine = build(contract, &[text.replace(from, to)], &wanted).start();
        match cases.iter().find_map(|case| case.run(&mut machine).err()) {
            Some(reason) => crate::say(&format!("  {name}: {reason}")),
            None => missed.push(*name),
        }
    }
    assert!(missed.is_empty(), "{file}: no case notices {missed:?}");
    crate::say(&format!("{file}: {} mutants caught", mutants.len()));
}
