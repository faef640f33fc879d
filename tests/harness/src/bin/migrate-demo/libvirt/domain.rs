//! The domain: `qemu/libvirt-domain.xml` with the changes that a machine without KVM and without
//! an installed guest needs, and what its guest boots from. Starts nothing.

use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bypass_harness::GuestImage;

use super::host::Host;

/// The name in the XML.
pub const NAME: &str = "vm1";
/// Where QEMU finds the socket of the guest's agent.
pub const AGENT: &str = "agent.sock";
/// Where a libvirt keeps images, which its QEMU may read.
const IMAGES: &str = "/var/lib/libvirt/images";

/// Memory as libvirt asks QEMU for it, in MiB, and as QEMU gets it, in KiB. libvirt makes whole
/// MiB of every size; without KVM, QEMU before 9.0 forgets pages of a guest that migrates, if its
/// memory is a multiple of 256 KiB (docs/migration.md).
const MEMORY_MIB: u64 = 512;
const MEMORY_KIB: u64 = MEMORY_MIB * 1024 + 8;

/// The domain's XML. What is changed must be there, each once.
pub fn adapted(xml: &str) -> Result<String, Box<dyn Error>> {
    let boot = format!(
        "<kernel>{IMAGES}/vmlinuz</kernel><initrd>{IMAGES}/initrd.gz</initrd>\
         <cmdline>console=ttyS0 panic=-1 mitigations=off nokaslr init_on_alloc=0</cmdline>"
    );
    // No network: the guest's namespace has none to give. Instead the disk with the tools, and
    // the port of the agent, to which QEMU connects as it starts: a guest that arrives finds it open.
    let tools = format!(
        "<emulator>{IMAGES}/emulator</emulator>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/>\
         <source file='{IMAGES}/tools.img'/><target dev='vdb' bus='virtio'/><readonly/>\
         <serial>bypass-tools</serial></disk>\
         <channel type='unix'><source mode='connect' path='/run/bypass-blk/{AGENT}'/>\
         <target type='virtio' name='agent'/></channel>"
    );
    let network = "<interface type='network'>\n      <source network='default'/>\n      \
                   <model type='virtio'/>\n    </interface>";
    let console = format!("<serial type='file'><source path='{IMAGES}/console'/></serial>");
    let mut xml = xml.to_owned();
    for (old, new) in [
        ("<domain type='kvm'>", "<domain type='qemu'>"),
        (
            "<memory unit='GiB'>2</memory>",
            &format!("<memory unit='MiB'>{MEMORY_MIB}</memory>"),
        ),
        ("<boot dev='hd'/>", &boot),
        ("<cpu mode='host-passthrough'/>", "<cpu mode='maximum'/>"),
        (network, &tools),
        ("<console type='pty'/>", &console),
    ] {
        match xml.matches(old).count() {
            1 => xml = xml.replace(old, new),
            found => return Err(format!("{found} times {old} in the domain's XML").into()),
        }
    }
    Ok(xml)
}

/// Puts what the guest boots from on a host.
pub fn install(image: &GuestImage, host: &Host) -> Result<(), Box<dyn Error>> {
    let dir = host.path(IMAGES);
    fs::create_dir_all(&dir)?;
    for (from, to) in [
        (&image.kernel, "vmlinuz"),
        (&image.initrd, "initrd.gz"),
        (&image.tools, "tools.img"),
    ] {
        fs::copy(from, dir.join(to))?;
    }
    let emulator = dir.join("emulator");
    fs::write(&emulator, emulator_script())?;
    executable(&emulator)
}

fn executable(path: &Path) -> Result<(), Box<dyn Error>> {
    Ok(fs::set_permissions(path, Permissions::from_mode(0o755))?)
}

/// QEMU with another size of memory. Refuses to run a guest whose size it could not change.
fn emulator_script() -> String {
    let bytes = |kib: u64| kib * 1024;
    format!(
        r#"#!/bin/sh
changed=0 guest=
for arg do
    shift
    case "$last $arg" in
    "-m {MEMORY_MIB}") arg={MEMORY_KIB}K changed=$((changed + 1)) ;;
    -name\ *) guest=yes ;;
    esac
    case $arg in
    *memory-backend-memfd*\"size\":{old}*)
        arg=$(printf %s "$arg" | sed 's/"size":{old}/"size":{new}/') changed=$((changed + 1)) ;;
    esac
    last=$arg
    set -- "$@" "$arg"
done
if [ -n "$guest" ] && [ $changed != 2 ]; then
    echo "the guest's memory could not be changed: $*" >&2
    exit 1
fi
exec /usr/bin/qemu-system-x86_64 "$@"
"#,
        old = bytes(MEMORY_MIB * 1024),
        new = bytes(MEMORY_KIB),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../qemu/libvirt-domain.xml"
    ));

    #[test]
    fn the_domain_that_is_shipped_keeps_its_disk() {
        let disk = |xml: &str| {
            let disk = &xml[xml.find("<disk type='vhostuser'").unwrap()..];
            disk[..disk.find("</disk>").unwrap()].to_owned()
        };
        assert_eq!(disk(&adapted(SHIPPED).unwrap()), disk(SHIPPED));
    }

    #[test]
    fn a_domain_that_lacks_a_part_is_not_taken_for_adapted() {
        let error = adapted(&SHIPPED.replace("2</memory>", "3</memory>")).unwrap_err();
        assert!(error.to_string().contains("<memory"), "{error}");
    }
}
