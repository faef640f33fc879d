//! What a guest boots from: a kernel of Debian's, an initramfs of busybox with
//! the agent (`guest/init`), and a small read-only disk with fio on it.
//!
//! Built once and kept in the scratch folder, under a name that changes with
//! everything it is made of. Starts no guest.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::error::AtPath;
use crate::run::scratch;
use crate::{Error, Result, run_command};

/// A folder that holds `boot/` and `lib/modules/`, asked first.
const GUEST_ROOT: &str = "BYPASS_GUEST_ROOT";
/// Where qemu/packages unpacks a kernel on machines that have none fit.
const UNPACKED_ROOT: &str = "/var/cache/bypass-blk/guest";
/// In the order in which they can be loaded (`modules.dep`).
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
];
const INIT: &str = include_str!("../guest/init");
const FIO_WRAPPER: &str = "#!/bin/sh
exec /tools/lib/ld-linux-x86-64.so.2 --library-path /tools/lib /tools/bin/fio \"$@\"
";
const BUSYBOX: &str = "/usr/bin/busybox";
const FIO: &str = "/usr/bin/fio";
const TOOL_DEADLINE: Duration = Duration::from_secs(120);
/// Room for the file system's own tables on the tools disk.
const TOOLS_SLACK: u64 = 8 << 20;

/// Files to boot guests from; shared by all guests.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initramfs, with the agent.
    pub initrd: PathBuf,
    /// A raw image, read-only, with the serial `bypass-tools`.
    pub tools: PathBuf,
}

impl GuestImage {
    /// Finds the newest fit kernel on this machine and builds the rest, unless
    /// that was done before.
    pub fn prepare() -> Result<GuestImage> {
        let kernel = Kernel::find()?;
        let scratch = scratch()?;
        let dir = scratch.join(format!("bypass-guest-{:016x}", kernel.fingerprint()?));
        let image = GuestImage {
            kernel: kernel.image.clone(),
            initrd: dir.join("initrd.gz"),
            tools: dir.join("tools.img"),
        };
        let lock_path = scratch.join("bypass-guest.lock");
        let lock = File::create(&lock_path).at("create", &lock_path)?;
        flock(&lock, FlockOperation::LockExclusive).at("lock", &lock_path)?;
        if !dir.exists() {
            build(&kernel, &scratch, &dir)?;
        }
        Ok(image)
    }
}

/// A kernel and its modules.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    fn find() -> Result<Kernel> {
        let mut roots: Vec<PathBuf> = env::var_os(GUEST_ROOT)
            .map(PathBuf::from)
            .into_iter()
            .collect();
        roots.extend([UNPACKED_ROOT.into(), "/".into()]);
        roots
            .iter()
            .flat_map(|root| Kernel::all_in(root))
            .next()
            .ok_or_else(|| {
                Error::Unsuitable(format!(
                    "no guest kernel in {roots:?}: qemu/packages fetches one"
                ))
            })
    }

    /// The fit kernels below `root`, newest first.
    fn all_in(root: &Path) -> Vec<Kernel> {
        let Ok(entries) = fs::read_dir(root.join("boot")) else {
            return Vec::new();
        };
        let mut kernels: Vec<(SystemTime, Kernel)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let version = name.strip_prefix("vmlinuz-")?;
                let kernel = Kernel {
                    image: entry.path(),
                    modules: modules_dir(root, version)?,
                };
                let changed = entry.metadata().ok()?.modified().ok()?;
                kernel.module("virtio_blk").map(|_| (changed, kernel))
            })
            .collect();
        kernels.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
        kernels.into_iter().map(|(_, kernel)| kernel).collect()
    }

    /// The file of a module, plain or xz-compressed.
    fn module(&self, name: &str) -> Option<PathBuf> {
        let index = fs::read_to_string(self.modules.join("modules.dep")).unwrap_or_default();
        let files: Vec<String> = if index.is_empty() {
            // Unpacked with `dpkg -x`: depmod never ran.
            list_recursively(&self.modules)
        } else {
            index
                .lines()
                .filter_map(|line| Some(line.split_once(':')?.0.to_owned()))
                .collect()
        };
        let wanted = [format!("/{name}.ko"), format!("/{name}.ko.xz")];
        files
            .into_iter()
            .find(|file| wanted.iter().any(|end| file.ends_with(end.as_str())))
            .map(|file| self.modules.join(file))
    }

    fn is_builtin(&self, name: &str) -> bool {
        fs::read_to_string(self.modules.join("modules.builtin")).is_ok_and(|list| {
            list.lines()
                .any(|line| line.ends_with(&format!("/{name}.ko")))
        })
    }

    /// Changes with everything that goes into an image.
    fn fingerprint(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        (INIT, FIO_WRAPPER, MODULES, &self.image).hash(&mut hasher);
        for file in [self.image.as_path(), BUSYBOX.as_ref(), FIO.as_ref()] {
            let meta = fs::metadata(file).at("find (install its Debian package)", file)?;
            (meta.len(), meta.modified().ok()).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

/// Debian 13's packages hold the merged `/usr`, Debian 12's do not.
fn modules_dir(root: &Path, version: &str) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|dir| root.join(dir).join(version))
        .find(|dir| dir.exists())
}

fn list_recursively(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => list_recursively(&entry.path()),
            _ => vec![entry.path().display().to_string()],
        })
        .collect()
}

/// Builds next to `dir` and renames into place, so that `dir` is whole or not there.
fn build(kernel: &Kernel, scratch: &Path, dir: &Path) -> Result<()> {
    let stage = scratch.join("bypass-guest.tmp");
    if stage.exists() {
        fs::remove_dir_all(&stage).at("remove", &stage)?;
    }
    let out = stage.join("out");
    fs::create_dir_all(&out).at("create", &out)?;
    build_initrd(kernel, &stage.join("initrd"), &out.join("initrd.gz"))?;
    build_tools(&stage.join("tools"), &out.join("tools.img"))?;
    fs::rename(&out, dir).at("move into place", dir)?;
    fs::remove_dir_all(&stage).at("remove", &stage)
}

fn build_initrd(kernel: &Kernel, root: &Path, out: &Path) -> Result<()> {
    let (bin, modules) = (root.join("bin"), root.join("modules"));
    for dir in [&bin, &modules] {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    copy(BUSYBOX.as_ref(), &bin.join("busybox"))?;
    std::os::unix::fs::symlink("busybox", bin.join("sh")).at("link", bin.join("sh"))?;
    write_script(&root.join("init"), INIT)?;
    write_script(&bin.join("fio"), FIO_WRAPPER)?;
    let mut order = String::new();
    for name in MODULES {
        match kernel.module(name) {
            Some(file) => {
                unpack_module(&file, &modules.join(format!("{name}.ko")))?;
                order.push_str(name);
                order.push('\n');
            }
            None if kernel.is_builtin(name) => {}
            None => {
                return Err(Error::Unsuitable(format!(
                    "no module {name} in {}",
                    kernel.modules.display()
                )));
            }
        }
    }
    fs::write(modules.join("order"), order).at("write", modules.join("order"))?;
    let pack = "cd \"$1\" && find . | cpio --quiet -o -H newc | gzip -1 >\"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", pack, "sh"]).arg(root).arg(out);
    run_command(&mut command, TOOL_DEADLINE).map(drop)
}

fn unpack_module(file: &Path, to: &Path) -> Result<()> {
    if file.extension().is_some_and(|ext| ext == "ko") {
        return copy(file, to);
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "xz -dc \"$1\" >\"$2\"", "sh"])
        .arg(file)
        .arg(to);
    run_command(&mut command, TOOL_DEADLINE).map(drop)
}

fn build_tools(root: &Path, out: &Path) -> Result<()> {
    pack_program(FIO.as_ref(), root, out, TOOLS_SLACK)
}

/// Makes the image `out`: an ext4 file system with `bin/NAME`, a copy of `program`, and every
/// library that it is linked with, and its loader, in `lib/`; and with `room` bytes beside
/// them. `root` is a folder that does not exist, for what goes into it.
///
/// # Errors
/// What is missing, or cannot be written.
pub fn pack_program(program: &Path, root: &Path, out: &Path, room: u64) -> Result<()> {
    let (bin, lib) = (root.join("bin"), root.join("lib"));
    for dir in [&bin, &lib] {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    let linked = run_command(Command::new("ldd").arg(program), TOOL_DEADLINE)?;
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(|path| (Path::new(path), &lib));
    let mut bytes = 0;
    for (path, folder) in libraries.chain([(program, &bin)]) {
        if let Some(name) = path.file_name() {
            copy(path, &folder.join(name))?;
            bytes += fs::metadata(path).at("stat", path)?.len();
        }
    }
    let kibibytes = (bytes + bytes / 16 + room) / 1024;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]);
    command.arg(root).arg(out).arg(format!("{kibibytes}k"));
    run_command(&mut command, TOOL_DEADLINE).map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).at("copy", from).map(drop)
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).at("write", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).at("set the mode of", path)
}
