//! Compiles the eBPF programs (`xdp/`, `tc/`) to `OUT_DIR/fsm-xdp.o` and `OUT_DIR/fsm-tc.o`, which the loader embeds.
//!
//! Why not `aya-build`: it always takes `rustup run nightly`, which not every machine has.  This takes the first
//! compiler that can produce BPF, and refuses objects in which a panic is left: such code has no business in the kernel.
//!
//! `FSM_BPF_RUSTC` and `FSM_BPF_LINKER` name a compiler and a linker; `FSM_BPF_LINT=1` also runs clippy on the programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const PROGRAMS: [&str; 2] = ["fsm-xdp", "fsm-tc"];
/// What the programs are made of, seen from the workspace's root.
const SOURCES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "common/Cargo.toml",
    "common/src",
    "xdp/Cargo.toml",
    "xdp/src",
    "tc/Cargo.toml",
    "tc/src",
];
const VARIABLES: [&str; 3] = ["FSM_BPF_RUSTC", "FSM_BPF_LINKER", "FSM_BPF_LINT"];
/// aya-ebpf needs a few unstable features of the compiler.
const UNSTABLE: &str = "aya_ebpf";

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("the eBPF programs cannot be built: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let out = PathBuf::from(var("OUT_DIR")?);
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("..");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let target = match var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let build = Build {
        toolchain: find_toolchain(target)?,
        linker: find_linker(&root)?,
        llvm: out.join("llvm"),
        target_dir: out.join("bpf"),
        root,
        target,
    };
    build.toolchain.link_llvm(&build.llvm)?;

    if env::var("FSM_BPF_LINT").is_ok_and(|on| on == "1") {
        build.lint()?;
    }
    build.compile()?;
    for program in PROGRAMS {
        let built = build.target_dir.join(target).join("release").join(program);
        let object = fs::read(&built).map_err(|e| format!("{}: {e}", built.display()))?;
        if contains_panic(&object) {
            return Err(format!(
                "{program} contains code that panics; look for indexing, slicing, division and unwrap"
            ));
        }
        let copy = out.join(format!("{program}.o"));
        fs::write(&copy, object).map_err(|e| format!("{}: {e}", copy.display()))?;
    }
    Ok(())
}

struct Build {
    toolchain: Toolchain,
    linker: PathBuf,
    /// Holds the one libLLVM that the linker is to open.
    llvm: PathBuf,
    /// Apart from the outer cargo's, which is locked while this runs.
    target_dir: PathBuf,
    root: PathBuf,
    target: &'static str,
}

impl Build {
    fn compile(&self) -> Result<()> {
        succeed(&mut self.cargo("build")?)
    }

    /// Not `cargo clippy`: that takes the clippy beside cargo, and it has to be the one beside the compiler.
    fn lint(&self) -> Result<()> {
        let Some(clippy) = self.toolchain.clippy() else {
            println!(
                "cargo::warning=no clippy for {}: the eBPF programs are not linted",
                self.toolchain.rustc.display()
            );
            return Ok(());
        };
        // Clippy's own separator between arguments.
        let warnings_are_errors = "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__";
        succeed(
            self.cargo("check")?
                .env("RUSTC_WORKSPACE_WRAPPER", clippy)
                .env("CLIPPY_ARGS", warnings_are_errors),
        )
    }

    fn cargo(&self, verb: &str) -> Result<Command> {
        let mut command = Command::new(&self.toolchain.cargo);
        command
            .current_dir(&self.root)
            .args([verb, "--release", "--locked", "--target", self.target])
            .arg("--target-dir");
        command.arg(&self.target_dir);
        command.args(PROGRAMS.iter().flat_map(|program| ["-p", program]));
        // What the outer cargo (or its clippy, or a user's sccache) asked for is not meant for this build.
        for variable in [
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET_DIR",
            "CLIPPY_ARGS",
        ] {
            command.env_remove(variable);
        }
        for variable in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            command.env(variable, "");
        }
        command
            .env("RUSTC", &self.toolchain.rustc)
            .env("RUSTC_BOOTSTRAP", UNSTABLE);
        if !self.toolchain.has_bpf_core {
            // "1" makes also cargo accept -Z.
            command
                .args(["-Z", "build-std=core"])
                .env("RUSTC_BOOTSTRAP", "1");
        }
        command.env("CARGO_ENCODED_RUSTFLAGS", self.rustc_flags()?.join("\x1f"));
        command.env("LD_LIBRARY_PATH", &self.llvm);
        Ok(command)
    }

    fn rustc_flags(&self) -> Result<Vec<String>> {
        let mut flags = vec![
            format!(
                "--cfg=bpf_target_arch=\"{}\"",
                var("CARGO_CFG_TARGET_ARCH")?
            ),
            "-Cdebuginfo=2".into(), // BTF is made from it
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".into(),
            "-Ctarget-cpu=v3".into(), // atomics with results, 32-bit registers: Linux 5.12
        ];
        // Makes `[u8; N]` reads of a packet one load instead of N; older LLVMs do not know it.
        let misaligned = "allows-misaligned-mem-access";
        if self
            .toolchain
            .print("target-features", self.target)?
            .contains(misaligned)
        {
            flags.push(format!("-Ctarget-feature=+{misaligned}"));
        }
        Ok(flags)
    }
}

/// A compiler that can produce BPF, and the cargo to run it.
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    sysroot: PathBuf,
    /// Else `core` is built from rust-src.
    has_bpf_core: bool,
}

impl Toolchain {
    fn inspect(rustc: PathBuf, target: &str) -> Option<Self> {
        let sysroot =
            PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?.trim());
        let rustlib = sysroot.join("lib/rustlib");
        let has_bpf_core =
            file_starting_with(&rustlib.join(target).join("lib"), "libcore-").is_some();
        if !has_bpf_core && !rustlib.join("src/rust/library/core").is_dir() {
            return None;
        }
        let own_cargo = sysroot.join("bin/cargo");
        // -Z build-std wants the cargo made for the compiler; otherwise any does.
        let cargo = match env::var_os("CARGO") {
            Some(cargo) if has_bpf_core || !own_cargo.exists() => cargo.into(),
            _ => own_cargo,
        };
        Some(Self {
            rustc,
            cargo,
            sysroot,
            has_bpf_core,
        })
    }

    fn print(&self, what: &str, target: &str) -> Result<String> {
        output(Command::new(&self.rustc).args(["--print", what, "--target", target]))
            .ok_or_else(|| format!("{} --print {what} failed", self.rustc.display()))
    }

    fn clippy(&self) -> Option<PathBuf> {
        let clippy = self.sysroot.join("bin/clippy-driver");
        let version = output(Command::new(&clippy).args(["--rustc", "--version"]))?;
        (Some(version) == output(Command::new(&self.rustc).arg("--version"))).then_some(clippy)
    }

    /// bpf-linker opens the first libLLVM it meets, and reads objects only with the LLVM that wrote them:
    /// `dir` gets a link to this compiler's, and nothing else.
    fn link_llvm(&self, dir: &Path) -> Result<()> {
        let about = output(Command::new(&self.rustc).arg("-vV")).unwrap_or_default();
        let field = |name: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
                .trim()
        };
        let mut version = field("LLVM version:").split('.');
        let (major, minor) = (
            version.next().unwrap_or_default(),
            version.next().unwrap_or_default(),
        );
        let multiarch = field("host:").replace("-unknown-", "-");

        let lib = self.sysroot.join("lib");
        let folders = [
            lib.clone(),
            lib.join(multiarch),
            self.sysroot.join("lib64"),
            lib.join(format!("llvm-{major}/lib")),
        ];
        let names = [
            format!("libLLVM.so.{major}.{minor}"),
            format!("libLLVM-{major}"),
            format!("libLLVM.so.{major}"),
        ];
        let library = names
            .iter()
            .find_map(|name| {
                folders
                    .iter()
                    .find_map(|folder| file_starting_with(folder, name))
            })
            .ok_or_else(|| {
                format!(
                    "no libLLVM {major}.{minor} of {} found; run scripts/setup",
                    self.rustc.display()
                )
            })?;

        let _absent_the_first_time = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)
            .and_then(|()| std::os::unix::fs::symlink(&library, dir.join("libLLVM.so")))
            .map_err(|e| format!("{}: {e}", dir.display()))
    }
}

fn find_toolchain(target: &str) -> Result<Toolchain> {
    if let Some(rustc) = env::var_os("FSM_BPF_RUSTC") {
        let shown = rustc.display().to_string();
        return Toolchain::inspect(rustc.into(), target).ok_or_else(|| {
            format!("FSM_BPF_RUSTC={shown} has neither `core` for {target} nor rust-src")
        });
    }
    let mut compilers = vec![PathBuf::from(var("RUSTC")?)];
    compilers.extend(rustup_nightlies());
    compilers.push("/usr/bin/rustc".into());
    compilers.into_iter().find_map(|rustc| Toolchain::inspect(rustc, target)).ok_or_else(|| {
        format!("no rustc here has `core` for {target} or the rust-src component to build it from; run scripts/setup")
    })
}

/// The compilers of rustup's nightly toolchains, `nightly` before dated ones.
fn rustup_nightlies() -> Vec<PathBuf> {
    let mut rustup = Command::new("rustup");
    let toolchains = output(rustup.args(["toolchain", "list"])).unwrap_or_default();
    toolchains
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .next()
                .filter(|name| name.starts_with("nightly"))
        })
        .filter_map(|name| {
            output(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]))
        })
        .map(|path| PathBuf::from(path.trim()))
        .collect()
}

fn find_linker(root: &Path) -> Result<PathBuf> {
    if let Some(linker) = env::var_os("FSM_BPF_LINKER") {
        return Ok(linker.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let folders = [root.join(".tools/bin")]
        .into_iter()
        .chain(env::split_paths(&path))
        .chain(cargo_home.map(|home| home.join("bin")));
    folders
        .map(|folder| folder.join("bpf-linker"))
        .find_map(|linker| linker.canonicalize().ok())
        .ok_or_else(|| "bpf-linker is missing; run scripts/setup".into())
}

/// Whether the object's symbol names tell of `core::panicking`.  Debug information, which names it too, lies in
/// sections of another type.
fn contains_panic(elf: &[u8]) -> bool {
    const SHT_STRTAB: u64 = 3;
    let big = elf.get(5) == Some(&2);
    let number = |at: usize, len: usize| -> Option<u64> {
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        let bytes = elf.get(at..at.checked_add(len)?)?;
        Some(if big {
            bytes.iter().fold(0, fold)
        } else {
            bytes.iter().rev().fold(0, fold)
        })
    };
    let section = |index: u64| -> Option<&[u8]> {
        let header = usize::try_from(number(0x28, 8)? + index * number(0x3a, 2)?).ok()?;
        if number(header + 4, 4)? != SHT_STRTAB {
            return Some(&[]);
        }
        let (offset, size) = (number(header + 0x18, 8)?, number(header + 0x20, 8)?);
        elf.get(usize::try_from(offset).ok()?..)?
            .get(..usize::try_from(size).ok()?)
    };
    let sections = number(0x3c, 2).unwrap_or(0);
    (0..sections)
        .filter_map(section)
        .any(|names| names.windows(9).any(|name| name == b"panicking"))
}

fn file_starting_with(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder)
        .ok()?
        .filter_map(std::result::Result::ok);
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    })
}

fn var(name: &str) -> Result<String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// The command's own words come before: cargo shows them with a build script's failure.
fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("see the compiler's messages above".into()),
        Err(e) => Err(format!("{name}: {e}")),
    }
}
