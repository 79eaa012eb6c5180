//! Kernels that are compiled, and the process in which they run.

use std::{
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::{
    Compiler, Contract, Error, Fault, Result, Translation,
    launch::{Access, Launch, Outcome, Output},
};

/// Compiled kernels, in executables of a few each: files that define the same names differently, as
/// MLX's `quantized.h` and `fp_quantized.h` do, never meet in one.
#[derive(Debug, Clone)]
pub struct Program {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    kernels: Vec<String>,
}

impl Program {
    /// Compiles the named kernels of each translation.
    ///
    /// # Errors
    /// `NoKernel`, and `Compiler` with what the compiler said.
    pub fn build(
        compiler: &Compiler,
        contract: Contract,
        kernels: &[(&Translation, Vec<String>)],
    ) -> Result<Program> {
        const PER_PART: usize = 12;
        let mut texts = Vec::new();
        let mut names = Vec::new();
        for (translation, all) in kernels {
            for some in all.chunks(PER_PART) {
                texts.push(translation.cpp(some)?);
                names.push(some.to_vec());
            }
        }
        let paths = compiler.programs(&texts, contract)?;
        let parts = paths.into_iter().zip(names).map(|(path, kernels)| Part { path, kernels });
        Ok(Program { parts: parts.collect() })
    }

    /// Something to launch the kernels on.
    pub fn start(&self) -> Machine {
        let parts = self.parts.iter().map(|part| (part.clone(), None)).collect();
        Machine { parts }
    }
}

/// Runs launches, one after the other.
#[derive(Debug)]
pub struct Machine {
    /// With the process in which the kernels run, once one has been asked for.
    parts: Vec<(Part, Option<Process>)>,
}

impl Machine {
    /// Runs the grid of one launch, threadgroup after threadgroup.
    ///
    /// # Errors
    /// `Fault` with what the kernel did that it must not.
    pub fn launch(&mut self, launch: &Launch) -> Result<Outcome> {
        let known = || self.parts.iter().flat_map(|(part, _)| part.kernels.clone()).collect();
        let Some(at) = self.parts.iter().position(|(p, _)| p.kernels.contains(&launch.kernel))
        else {
            return Err(Error::NoKernel { name: launch.kernel.clone(), known: known() });
        };
        let (part, process) = &mut self.parts[at];
        let process = match process {
            Some(process) => process,
            None => process.insert(Process::start(&part.path)?),
        };
        process.launch(launch)
    }
}

#[derive(Debug)]
struct Process {
    path: PathBuf,
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(path: &Path) -> Result<Process> {
        let mut child = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io("run", path))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Program { reason: "has no pipes".to_owned() });
        };
        Ok(Process {
            path: path.to_owned(),
            child,
            input: BufWriter::new(input),
            output: BufReader::new(output),
        })
    }

    fn launch(&mut self, launch: &Launch) -> Result<Outcome> {
        self.send(launch).map_err(|error| self.gone(&error.to_string()))?;
        if self.u32()? == 0 {
            let (kind, message) = (self.text()?, self.text()?);
            let (pc, anchor) = (self.u64()?, self.u64()?);
            let place = if pc == 0 { String::new() } else { place(&self.path, pc, anchor) };
            let fault = Fault { kind, message, place };
            return Err(Error::Fault { kernel: launch.kernel.clone(), fault });
        }
        let mut outputs = Vec::new();
        for buffer in launch.buffers.iter().filter(|b| b.access != Access::Read) {
            let index = self.u32()?;
            if index != buffer.index {
                return Err(self.gone("answers out of order"));
            }
            let bytes = self.bytes()?;
            let unwritten = (0..self.u32()?).map(|_| self.u32()).collect::<Result<_>>()?;
            outputs.push(Output { index, bytes, unwritten });
        }
        Ok(Outcome {
            outputs,
            num_accesses: self.u64()?,
            num_meetings: self.u64()?,
            num_barriers: self.u64()?,
            num_equal_writes: self.u64()?,
        })
    }

    fn send(&mut self, launch: &Launch) -> std::io::Result<()> {
        let out = &mut self.input;
        put(out, 1)?;
        put_bytes(out, launch.kernel.as_bytes())?;
        put(out, launch.grid_in_threads.into())?;
        for n in launch.grid.into_iter().chain(launch.group) {
            put(out, n)?;
        }
        put(out, launch.order as u32)?;
        put(out, launch.allow_equal_writes.into())?;
        put(out, launch.flush_denormals.into())?;
        put(out, launch.buffers.len() as u32)?;
        for buffer in &launch.buffers {
            put(out, buffer.index)?;
            put(out, buffer.access as u32)?;
            if buffer.access == Access::Write {
                put(out, buffer.bytes.len() as u32)?;
            } else {
                put_bytes(out, &buffer.bytes)?;
            }
        }
        put(out, launch.constants.len() as u32)?;
        for (index, bytes) in &launch.constants {
            put(out, *index)?;
            put_bytes(out, bytes)?;
        }
        put(out, launch.threadgroup_lengths.len() as u32)?;
        for length in &launch.threadgroup_lengths {
            put(out, *length)?;
        }
        out.flush()
    }

    fn gone(&mut self, why: &str) -> Error {
        let status = self.child.try_wait().ok().flatten();
        let reason = match status {
            Some(status) => format!("ended with {status}: {why}"),
            None => why.to_owned(),
        };
        Error::Program { reason }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.output.read_exact(bytes).map_err(|error| self.gone(&error.to_string()))
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.u32()? as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn put(out: &mut impl Write, n: u32) -> std::io::Result<()> {
    out.write_all(&n.to_le_bytes())
}

fn put_bytes(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    put(out, bytes.len() as u32)?;
    out.write_all(bytes)
}

/// The line of the source before the return address `pc`, as far as binutils are there to tell.
/// `anchor` is where the symbol of the same name as in `serve.cpp` was loaded.
fn place(program: &Path, pc: u64, anchor: u64) -> String {
    let ask = |tool: &str, arguments: &[&str]| {
        let output = Command::new(tool).args(arguments).arg(program).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let line = || {
        let symbols = ask("nm", &["-C"])?;
        let symbol = symbols.lines().find(|l| l.contains("bench::find_kernel("))?;
        let linked = u64::from_str_radix(symbol.split_whitespace().next()?, 16).ok()?;
        let address = format!("0x{:x}", pc - 1 - anchor + linked);
        let said = ask("addr2line", &["-i", "-s", &address, "-e"])?;
        let place = said.lines().find(|l| !l.starts_with('?'))?;
        Some(place.split(" (").next()?.to_owned())
    };
    line().unwrap_or_default()
}
