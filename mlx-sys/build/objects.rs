//! Compiling our C++ files, only those that have changed, several at once.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use zmlx_patch::ObjectId;

use crate::Result;

/// How one file is compiled.
pub(crate) struct Compilation {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    source: PathBuf,
}

impl Compilation {
    /// With the compiler and flags of `build`.
    pub(crate) fn with(build: &cc::Build, source: PathBuf) -> Compilation {
        let tool = build.get_compiler();
        Compilation {
            program: tool.path().to_owned(),
            arguments: tool.args().to_vec(),
            environment: tool.get_envs().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            source,
        }
    }

    /// With another program.
    pub(crate) fn by(program: PathBuf, arguments: Vec<String>, source: PathBuf) -> Compilation {
        let arguments = arguments.into_iter().map(OsString::from).collect();
        Compilation { program, arguments, environment: Vec::new(), source }
    }

    /// Differs when the file would be compiled in another way.
    fn id(&self) -> ObjectId {
        let text = format!("{:?} {:?} {:?}", self.program, self.arguments, self.source);
        ObjectId::of("compilation", text.as_bytes())
    }
}

/// Files that make up one static library.
pub(crate) struct Objects {
    folder: PathBuf,
    jobs: usize,
    compilations: Vec<Compilation>,
}

impl Objects {
    pub(crate) fn new(folder: &Path, jobs: usize) -> Objects {
        Objects { folder: folder.to_owned(), jobs: jobs.max(1), compilations: Vec::new() }
    }

    pub(crate) fn add(&mut self, compilation: Compilation) {
        self.compilations.push(compilation);
    }

    /// Compiles what has changed and asks cargo to link the library; no files, no library.
    pub(crate) fn archive(self, name: &str, cxx: &Path) -> Result<()> {
        if self.compilations.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..self.jobs.min(self.compilations.len()) {
                scope.spawn(|| {
                    while let Some(c) = self.compilations.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if let Err(error) = self.compile(c) {
                            next.store(self.compilations.len(), Ordering::Relaxed);
                            if let Ok(mut failure) = failure.lock() {
                                failure.get_or_insert(error.to_string());
                            }
                        }
                    }
                });
            }
        });
        if let Ok(Some(error)) = failure.into_inner() {
            return Err(error.into());
        }
        let mut library = cc::Build::new();
        library.compiler(cxx).cpp(true);
        for compilation in &self.compilations {
            library.object(self.object(compilation));
        }
        library.try_compile(name)?;
        Ok(())
    }

    fn object(&self, compilation: &Compilation) -> PathBuf {
        let stem = compilation.source.file_stem().unwrap_or_default().to_string_lossy();
        let place = compilation.source.to_string_lossy();
        let place = ObjectId::of("path", place.as_bytes()).to_string();
        self.folder.join(format!("{stem}-{}.o", &place[..8]))
    }

    fn compile(&self, compilation: &Compilation) -> Result<()> {
        let object = self.object(compilation);
        let (record, dependencies) = (object.with_extension("key"), object.with_extension("d"));
        if object.exists() && is_current(&record, compilation) {
            return Ok(());
        }
        let _ = fs::remove_file(&record);
        let mut command = Command::new(&compilation.program);
        command.args(&compilation.arguments).envs(compilation.environment.iter().cloned());
        command.arg("-MMD").arg("-MF").arg(&dependencies);
        command.arg("-c").arg(&compilation.source).arg("-o").arg(&object);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let source = compilation.source.display();
            return Err(format!("cannot compile {source} ({}):\n{said}", output.status).into());
        }
        let ours = read_dependencies(&dependencies)?;
        // what compilers say about their own headers is not for us to mend
        let of_ours = |l: &&str| ours.iter().any(|f| l.starts_with(&*f.to_string_lossy()));
        for line in said.lines().filter(|l| l.contains("warning:")).filter(of_ours) {
            println!("cargo:warning={line}");
        }
        let mut text = compilation.id().to_string();
        for path in ours {
            text += &format!("\n{} {}", zmlx_patch::object_id::blob_id(&path)?, path.display());
        }
        fs::write(record, text)?;
        Ok(())
    }
}

/// Whether the file and everything of ours that it includes are as they were.
fn is_current(record: &Path, compilation: &Compilation) -> bool {
    let Ok(text) = fs::read_to_string(record) else { return false };
    let mut lines = text.lines();
    if lines.next() != Some(compilation.id().to_string().as_str()) {
        return false;
    }
    lines.all(|line| {
        let Some((id, path)) = line.split_once(' ') else { return false };
        let now = zmlx_patch::object_id::blob_id(Path::new(path));
        now.is_ok_and(|now| now.to_string() == id)
    })
}

/// The paths in a makefile rule as compilers write it.
fn read_dependencies(path: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(path)?.replace("\\\n", " ").replace("\\ ", "\u{1}");
    let list = text.split_once(": ").map(|(_, list)| list).unwrap_or_default();
    Ok(list.split_whitespace().map(|p| PathBuf::from(p.replace('\u{1}', " "))).collect())
}
