use zmlx::lm::{self, Decoder, GenerateOptions, PatchOptions, TextStream, Tokenizer};

#[allow(clippy::print_stdout, reason = "an example shows what it made")]
fn main() -> lm::Result<()> {
    let folder = std::path::Path::new("models/demo");
    let mut loaded = lm::load(folder)?;
    let tokenizer = Tokenizer::load(folder)?;
    let report = lm::patch(&mut loaded, &PatchOptions::default())?;
    let prompt = tokenizer.encode_prompt("The shell reads commands from")?;
    let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
    let mut decoder = Decoder::new(loaded.model.as_ref(), &prompt, &options)?;
    let mut text = TextStream::new(&tokenizer, &[])?;
    for token in &mut decoder {
        print!("{}", text.push(token?)?);
    }
    println!("{}", text.finish()?);
    println!("{} fused modules", report.patched_modules());
    Ok(())
}
