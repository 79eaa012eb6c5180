//! Compiling our C++ files, only those that have changed, several at once.
//!
//! Objects are also kept in a store in the shared cache, so that another profile, another feature
//! set, another checkout or `cargo clean` does not compile the same file again.

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

use zmlx_patch::{ObjectId, native, object_id::blob_id};

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
        ObjectId::of("compilation", self.text().as_bytes())
    }

    fn text(&self) -> String {
        format!("{:?} {:?} {:?}", self.program, self.arguments, self.source)
    }
}

/// Objects of all checkouts and profiles, by what went into them.
pub(crate) struct Store {
    folder: PathBuf,
    /// Our headers: an object depends on some of them, its key on all.
    headers: Vec<PathBuf>,
    /// The compiler's version and the headers' content.
    common: String,
    /// Folders that differ between checkouts and targets, with the names they have in keys.
    places: [(PathBuf, &'static str); 2],
}

impl Store {
    pub(crate) fn new(
        folder: PathBuf,
        compiler: &Path,
        header_folders: &[PathBuf],
        places: [(PathBuf, &'static str); 2],
    ) -> Result<Store> {
        let mut headers = Vec::new();
        for folder in header_folders {
            headers_in(folder, &mut headers)?;
        }
        let mut contents = Vec::new();
        for header in &headers {
            let name = header.file_name().unwrap_or_default().to_string_lossy().into_owned();
            contents.push(format!("{name} {}", blob_id(header)?));
        }
        // not by path: checkouts lie in different places
        contents.sort();
        let common = format!("{}\n{}", native::version_of(compiler)?, contents.join("\n"));
        fs::create_dir_all(&folder)?;
        Ok(Store { folder, headers, common, places })
    }

    /// Where the object of a compilation is kept.
    fn object(&self, compilation: &Compilation) -> Result<PathBuf> {
        let mut text = compilation.text();
        for (place, name) in &self.places {
            text = text.replace(&*place.to_string_lossy(), name);
        }
        let source = blob_id(&compilation.source)?;
        let key = ObjectId::of("object", format!("{text}\n{source}\n{}", self.common).as_bytes());
        Ok(self.folder.join(format!("{key}.o")))
    }

    /// Keeps a copy of `object`; a store that cannot be written to costs time and nothing else.
    fn keep(&self, object: &Path, kept: &Path) {
        let scratch = kept.with_extension(format!("{}.tmp", std::process::id()));
        if fs::copy(object, &scratch).is_ok() {
            let _ = fs::rename(&scratch, kept);
        }
    }
}

fn headers_in(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.is_dir() {
            headers_in(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "h" || e == "cuh") {
            found.push(path);
        }
    }
    Ok(())
}

/// Files that make up one static library.
pub(crate) struct Objects<'a> {
    folder: PathBuf,
    jobs: usize,
    store: &'a Store,
    compilations: Vec<Compilation>,
}

impl Objects<'_> {
    pub(crate) fn new<'a>(folder: &Path, jobs: usize, store: &'a Store) -> Objects<'a> {
        Objects { folder: folder.to_owned(), jobs: jobs.max(1), store, compilations: Vec::new() }
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
        let kept = self.store.object(compilation)?;
        if kept.exists() && fs::copy(&kept, &object).is_ok() {
            let source = std::iter::once(&compilation.source);
            return write_record(&record, compilation, source.chain(&self.store.headers));
        }
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
        self.store.keep(&object, &kept);
        write_record(&record, compilation, &ours)
    }
}

/// Notes what an object was made from, for [`is_current`].
fn write_record<'a>(
    record: &Path,
    compilation: &Compilation,
    files: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<()> {
    let mut text = compilation.id().to_string();
    for path in files {
        text += &format!("\n{} {}", blob_id(path)?, path.display());
    }
    fs::write(record, text)?;
    Ok(())
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
        let now = blob_id(Path::new(path));
        now.is_ok_and(|now| now.to_string() == id)
    })
}

/// The paths in a makefile rule as compilers write it.
fn read_dependencies(path: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(path)?.replace("\\\n", " ").replace("\\ ", "\u{1}");
    let list = text.split_once(": ").map(|(_, list)| list).unwrap_or_default();
    Ok(list.split_whitespace().map(|p| PathBuf::from(p.replace('\u{1}', " "))).collect())
}
