//! The machine's own C++ compiler, and a folder with what it has compiled.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use zmlx_patch::ObjectId;

use crate::{Error, Result};

/// The folder with the standard library, the machine and the program around them.
const METAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/metal");

/// The folder of the workspace. Without `..`, which ccache would not take for the beginning of a path in it.
fn checkout() -> &'static Path {
    let fork = Path::new(zmlx_patch::ROOT);
    fork.parent().unwrap_or(fork)
}

/// Files that Metal's own compiler finds; ours is included by the translator.
const STANDARD_HEADERS: [&str; 14] = [
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_geometric",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_stdlib",
    "metal_type_traits",
];

/// What every unit is compiled with: each access of memory that threads could share is reported,
/// each index into an array of known size is checked, variables begin as garbage.
const FLAGS: [&str; 11] = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-w",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fsanitize=thread",
    "-fsanitize=bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
];

/// Whether the compiler may make one operation of a multiplication and an addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// Every operation rounds.
    Off,
    /// Wherever it finds one feeding the other, also between statements.
    Fast,
}

/// The compiler with the folder that it writes to.
#[derive(Debug, Clone)]
pub struct Compiler {
    program: PathBuf,
    version: String,
    launcher: Option<PathBuf>,
    folder: PathBuf,
    flags: Vec<String>,
}

impl Compiler {
    /// Finds `CXX`, or what usually is the compiler, and keeps what it compiles in `folder`.
    ///
    /// # Errors
    /// `Io` where there is no compiler, or the folder cannot be written.
    pub fn find(folder: &Path) -> Result<Compiler> {
        let named = env::var("CXX").ok().filter(|name| !name.is_empty());
        let usual = ["c++", "g++", "clang++"].map(str::to_owned);
        let mut last = None;
        for name in named.map_or(usual.to_vec(), |name| vec![name]) {
            match Command::new(&name).arg("--version").output() {
                Ok(output) => {
                    let version = String::from_utf8_lossy(&output.stdout).into_owned();
                    return Compiler::of(name.into(), version, folder);
                }
                Err(error) => last = Some(Error::io("run", &name)(error)),
            }
        }
        Err(last.unwrap_or(Error::Program { reason: "needs a C++ compiler".to_owned() }))
    }

    fn of(program: PathBuf, version: String, folder: &Path) -> Result<Compiler> {
        let headers = folder.join("headers");
        fs::create_dir_all(&headers).map_err(Error::io("create", &headers))?;
        for name in STANDARD_HEADERS {
            let path = headers.join(name);
            if !path.exists() {
                fs::write(&path, "").map_err(Error::io("write", &path))?;
            }
        }
        let launcher = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join("ccache"))
            .find(|path| path.is_file());
        let mut compiler =
            Compiler { program, version, launcher, folder: folder.to_owned(), flags: Vec::new() };
        compiler.flags = FLAGS.map(str::to_owned).to_vec();
        // not in every release that compiles the rest
        compiler.add_if_known("-ftrivial-auto-var-init=pattern");
        Ok(compiler)
    }

    fn add_if_known(&mut self, flag: &str) {
        let mut command = Command::new(&self.program);
        command.args([flag, "-Werror", "-fsyntax-only", "-x", "c++", "/dev/null"]);
        if command.output().is_ok_and(|output| output.status.success()) {
            self.flags.push(flag.to_owned());
        }
    }

    /// The folder with what has been compiled.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether this processor can run what [`Contract::Fast`] makes.
    pub fn can_contract() -> bool {
        #[cfg(target_arch = "x86_64")]
        return std::arch::is_x86_feature_detected!("fma");
        #[cfg(not(target_arch = "x86_64"))]
        return cfg!(target_arch = "aarch64");
    }

    /// The text of a `.metal` file with its includes and macros in place; quoted includes are looked for
    /// in `include`.
    ///
    /// # Errors
    /// `Compiler` where the preprocessor stops.
    pub fn read(&self, source: &Path, include: &[PathBuf]) -> Result<String> {
        self.preprocess(source, include)
    }

    /// As [`Compiler::read`], of a file that exists only as text.
    ///
    /// # Errors
    /// Those of [`Compiler::read`].
    pub fn read_text(&self, text: &str, include: &[PathBuf]) -> Result<String> {
        let name = ObjectId::of("metal", text.as_bytes()).to_string();
        let path = self.folder.join(name).with_extension("metal");
        let lock = lock_of(&path);
        let _alone = hold(&lock);
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        self.preprocess(&path, include)
    }

    fn preprocess(&self, source: &Path, include: &[PathBuf]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["-std=c++20", "-E", "-w", "-x", "c++"]);
        command.args(["-D__METAL__=1", "-D__METAL_VERSION__=310"]);
        command.arg("-I").arg(self.folder.join("headers"));
        for folder in include {
            command.arg("-I").arg(folder);
        }
        let text = self.run(command.arg(source), &source.display().to_string())?;
        // where things lie on this machine is no part of what is compiled
        let mut folders: Vec<String> = include.iter().map(|f| f.display().to_string()).collect();
        folders.push(self.folder.join("headers").display().to_string());
        folders.extend([self.folder.as_path(), checkout()].map(|f| f.display().to_string()));
        Ok(folders.iter().fold(text, |text, folder| text.replace(&format!("\"{folder}/"), "\"")))
    }

    /// For each of `units`, which are C++, a program with its kernels; compiled unless it has been.
    pub(crate) fn programs(&self, units: &[String], contract: Contract) -> Result<Vec<PathBuf>> {
        let mut flags = self.flags.clone();
        match contract {
            Contract::Off => flags.push("-ffp-contract=off".to_owned()),
            Contract::Fast => {
                // at -O1 gcc leaves out some
                flags.extend(["-O2", "-ffp-contract=fast"].map(str::to_owned));
                if cfg!(target_arch = "x86_64") {
                    flags.push("-mfma".to_owned());
                }
            }
        }
        let next = Mutex::new(units.iter().enumerate());
        let made: Mutex<Vec<Result<(usize, PathBuf)>>> = Mutex::new(Vec::new());
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(units.len()) {
                scope.spawn(|| {
                    loop {
                        let one = hold(&next).next();
                        let Some((number, unit)) = one else { break };
                        let program = self.program(unit, &flags);
                        hold(&made).push(program.map(|path| (number, path)));
                    }
                });
            }
        });
        let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut paths = made.into_iter().collect::<Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths.into_iter().map(|(_, path)| path).collect())
    }

    fn program(&self, unit: &str, flags: &[String]) -> Result<PathBuf> {
        let key = self.key(unit.as_bytes(), flags);
        let program = self.folder.join(&key);
        let lock = lock_of(&program);
        let _alone = hold(&lock);
        if program.exists() {
            return Ok(program);
        }
        let mut objects = Vec::new();
        for name in ["machine", "memory", "serve"] {
            let path = Path::new(METAL).join("runtime").join(name).with_extension("cpp");
            objects.push(self.object(&path, &["-std=c++20".to_owned(), "-O2".to_owned()])?);
        }
        let source = program.with_extension("cpp");
        fs::write(&source, unit).map_err(Error::io("write", &source))?;
        objects.push(self.object(&source, flags)?);
        let new = program.with_extension("new");
        let mut command = Command::new(&self.program);
        command.args(&objects).arg("-o").arg(&new).arg("-lm");
        self.run(&mut command, "the program")?;
        fs::rename(&new, &program).map_err(Error::io("rename", &new))?;
        Ok(program)
    }

    fn object(&self, source: &Path, flags: &[String]) -> Result<PathBuf> {
        let text = fs::read(source).map_err(Error::io("read", source))?;
        let object = self.folder.join(self.key(&text, flags)).with_extension("o");
        let lock = lock_of(&object);
        let _alone = hold(&lock);
        if object.exists() {
            return Ok(object);
        }
        let new = object.with_extension("new.o");
        let mut command = Command::new(&self.program);
        if let Some(ccache) = &self.launcher {
            command = Command::new(ccache);
            command.arg(&self.program).env("CCACHE_BASEDIR", checkout()).envs([
                ("CCACHE_NOHASHDIR", "true"),
                ("CCACHE_COMPILERCHECK", "%compiler% --version"),
            ]);
            if let Some(folder) = ccache_folder() {
                command.env("CCACHE_DIR", folder);
            }
        }
        command
            .current_dir(&self.folder)
            .args(flags)
            .arg("-I")
            .arg(METAL)
            .arg("-c")
            .arg(source)
            .arg("-o")
            .arg(&new);
        self.run(&mut command, &source.display().to_string())?;
        fs::rename(&new, &object).map_err(Error::io("rename", &new))?;
        Ok(object)
    }

    /// Names what comes of `text`: the compiler and our headers have a say.
    fn key(&self, text: &[u8], flags: &[String]) -> String {
        static HEADERS: LazyLock<String> = LazyLock::new(|| {
            let mut all = String::new();
            for folder in ["runtime", "stdlib"] {
                let entries = fs::read_dir(Path::new(METAL).join(folder));
                let mut paths: Vec<PathBuf> =
                    entries.into_iter().flatten().flatten().map(|e| e.path()).collect();
                paths.sort();
                for path in paths {
                    all += &fs::read_to_string(path).unwrap_or_default();
                }
            }
            all
        });
        let flags = flags.join(" ");
        let parts = [self.version.as_bytes(), HEADERS.as_bytes(), flags.as_bytes(), text];
        ObjectId::of("metal-bench", &parts.concat()).to_string()
    }

    fn run(&self, command: &mut Command, what: &str) -> Result<String> {
        let output = command.output().map_err(Error::io("run", &self.program))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().take(40).collect();
        Err(Error::Compiler {
            program: self.program.clone(),
            what: what.to_owned(),
            said: said.join("\n"),
        })
    }
}

/// Where the overlay keeps what ccache has compiled (`docs/building.md`), unless `CCACHE_DIR` says.
fn ccache_folder() -> Option<PathBuf> {
    let named = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if env::var_os("CCACHE_DIR").is_some() {
        return None;
    }
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    let root = named("ZMLX_CACHE_DIR").or_else(|| Some(cache?.join("zmlx")));
    Some(root?.join("ccache"))
}

/// Tests run at once and may want the same file: one makes it, the others wait.
fn lock_of(path: &Path) -> Arc<Mutex<()>> {
    static ALL: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = LazyLock::new(Mutex::default);
    hold(&ALL).entry(path.to_owned()).or_default().clone()
}

/// What a test that failed has left is whole: files appear by a rename.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
