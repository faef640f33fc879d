//! Where the Gluster of this host looks for certificates: a folder that is compiled into it.
//!
//! Asked by [`super::files`] where a volume does not say. It is OpenSSL's folder on the machine that
//! built the package (`SSL_CERT_PATH`, configure.ac), so it differs between releases of one
//! distribution, and no command of Gluster's tells it: it is read out of Gluster's transport, which
//! has the whole path (`DEFAULT_CERT_PATH`, rpc/rpc-transport/socket/src/socket.c). Nothing is opened
//! but that library.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where no Gluster is found: Debian 12's, Fedora's, and that of Debian 13 and SUSE. One with a
/// certificate in it counts, or else the first.
const USUAL: [&str; 3] = ["/usr/lib/ssl", "/etc/pki/tls", "/etc/ssl"];
/// The path's end, as it stands in the library.
const NAME: &[u8] = b"/glusterfs.pem\0";

/// Where `glusterfs.pem` and the others are.
pub(super) fn default_folder() -> PathBuf {
    let installed = transport().and_then(|library| fs::read(library).ok());
    let folder = installed.and_then(|library| compiled_into(&library));
    folder.unwrap_or_else(|| {
        let mut usual = USUAL.into_iter().map(Path::new);
        let holds_any = |folder: &&Path| folder.join("glusterfs.pem").exists();
        let folder = usual.find(holds_any).unwrap_or(Path::new(USUAL[0]));
        folder.to_owned()
    })
}

/// Gluster's transport over sockets, the newest if there are several versions.
fn transport() -> Option<PathBuf> {
    let debian = format!("/usr/lib/{ARCH}-linux-gnu");
    let libraries = [debian.as_str(), "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    let versions = libraries
        .into_iter()
        .filter_map(|folder| fs::read_dir(Path::new(folder).join("glusterfs")).ok());
    let found = versions.flatten().flatten().filter_map(|version| {
        let library = version.path().join("rpc-transport/socket.so");
        let installed = fs::metadata(&library).and_then(|facts| facts.modified());
        Some((installed.ok()?, library))
    });
    found.max().map(|(_, library)| library)
}

/// The folder of the path that ends in [`NAME`].
fn compiled_into(library: &[u8]) -> Option<PathBuf> {
    let end = library.windows(NAME.len()).position(|part| part == NAME)?;
    let begin = library[..end].iter().rposition(|byte| *byte == 0)? + 1;
    let folder = Path::new(std::ffi::OsStr::from_bytes(&library[begin..end]));
    folder.is_absolute().then(|| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_one_that_gluster_was_built_with() {
        let folder = |library: &[u8]| compiled_into(library);
        let built =
            b"\x7fELF\0dh\0/etc/ssl/dhparam.pem\0/etc/ssl/glusterfs.pem\0/etc/ssl/glusterfs.key\0";
        assert_eq!(folder(built), Some("/etc/ssl".into()));
        assert_eq!(folder(b"\0/opt/tls/x\0no path\0"), None);
        assert_eq!(folder(b"\0relative/glusterfs.pem\0"), None);
        assert_eq!(folder(b"/etc/ssl/glusterfs.pem\0"), None, "cut off");
        assert_eq!(folder(b""), None);
    }
}
