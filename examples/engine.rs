//! Several questions at once: one model, one thread, answers as they come.

use zmlx::lm::engine::{Engine, EngineOptions, Request};
use zmlx::lm::{self, PatchOptions, Tokenizer};

#[allow(clippy::print_stdout, reason = "an example shows what it made")]
fn main() -> lm::Result<()> {
    let folder = std::path::Path::new("models/demo");
    let tokenizer = Tokenizer::load(folder)?;
    let engine = Engine::open(folder, PatchOptions::default(), EngineOptions::default())?;
    let texts = ["The shell reads commands from", "A process is", "The file system holds"];
    let mut streams = Vec::new();
    for text in texts {
        let mut request = Request::new(tokenizer.encode_prompt(text)?);
        request.options.max_tokens = 48;
        streams.push(engine.submit(request)?);
    }
    for (text, stream) in texts.iter().zip(streams) {
        println!("{text}{}\n", stream.wait()?.text);
    }
    Ok(())
}
