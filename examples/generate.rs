use std::ops::ControlFlow;

use zmlx::lm::{self, GenerateOptions, PatchOptions, Tokenizer};

#[allow(clippy::print_stdout, reason = "an example shows what it made")]
fn main() -> lm::Result<()> {
    let folder = std::path::Path::new("models/demo");
    let mut loaded = lm::load(folder)?;
    let tokenizer = Tokenizer::load(folder)?;
    let report = lm::patch(&mut loaded, &PatchOptions::default())?;
    let prompt = tokenizer.encode_prompt("The shell reads commands from")?;
    let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
    let keep_going = &mut |_| ControlFlow::Continue(());
    let generation = lm::generate(loaded.model.as_ref(), &prompt, &options, keep_going)?;
    println!("{}", tokenizer.decode(&generation.token_ids)?);
    println!("{} fused modules", report.patched_modules());
    Ok(())
}
