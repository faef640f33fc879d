//! Where the options of one QEMU differ from those of another: Debian 12 has 7.2, Debian 13 has 10.0.

use std::process::Command;
use std::sync::OnceLock;

/// What has a socket of the installed QEMU connect again a second after its peer went away. From 9.2
/// on that time is in milliseconds; the older option is to go.
pub(crate) fn reconnect_option() -> &'static str {
    static OPTION: OnceLock<&str> = OnceLock::new();
    OPTION.get_or_init(|| {
        let told = Command::new("qemu-system-x86_64").arg("--version").output();
        let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        option_of(&told.unwrap_or_default())
    })
}

fn option_of(told: &str) -> &'static str {
    let version = told
        .split_whitespace()
        .skip_while(|word| *word != "version");
    let mut numbers = version
        .skip(1)
        .flat_map(|version| version.split('.'))
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (9, 2) => "reconnect-ms=1000",
        _ => "reconnect=1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_qemu_gets_the_option_that_it_knows() {
        let debian_12 = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(option_of(debian_12), "reconnect=1");
        assert_eq!(option_of("QEMU emulator version 9.1.3"), "reconnect=1");
        assert_eq!(
            option_of("QEMU emulator version 9.2.0"),
            "reconnect-ms=1000"
        );
        let debian_13 = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)";
        assert_eq!(option_of(debian_13), "reconnect-ms=1000");
        assert_eq!(option_of(""), "reconnect=1");
    }
}
