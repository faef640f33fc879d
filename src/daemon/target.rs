//! What to work on, as people write it: a glusterd, a volume, an image. All of it is checked
//! when it is read, so that no path of an image leaves its volume.

use crate::gluster::glusterd::GLUSTERD_PORT;

/// `HOST[:PORT]` of a glusterd; an IPv6 address with a port stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlusterdAddress {
    /// Its name or address.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
}

impl std::str::FromStr for GlusterdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |digits: &str| {
            digits
                .parse()
                .map_err(|_| format!("{digits:?} is not a port number"))
        };
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, GLUSTERD_PORT),
            Some((host, rest)) => (host, port(rest.trim_start_matches(':'))?),
            None => match text.split_once(':') {
                Some((host, digits)) if !digits.contains(':') => (host, port(digits)?),
                _ => (text, GLUSTERD_PORT),
            },
        };
        if host.is_empty() {
            return Err("the host is missing".to_owned());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// `VOLUME/IMAGE` on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The volume.
    pub volume: String,
    /// The image in it.
    pub image: ImagePath,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.volume, self.image.0)
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (volume, image) = text
            .split_once('/')
            .ok_or("expected VOLUME/IMAGE, for example gv0/vms/one.img")?;
        Ok(Self {
            volume: volume_name(volume)?,
            image: image.parse()?,
        })
    }
}

/// The path of an image in its volume: absolute, without `.`, `..` or empty parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePath(pub String);

impl std::str::FromStr for ImagePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("--") {
            return Err(format!(
                "the image's path is missing before {text} (an image of that name is /{text})"
            ));
        }
        let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err("the image's path is missing".to_owned());
        }
        if let Some(part) = parts
            .iter()
            .find(|part| matches!(**part, "." | "..") || part.contains('\0'))
        {
            return Err(format!("the image's path may not contain {part:?}"));
        }
        if parts[0] == ".glusterfs" || parts[0] == ".shard" {
            return Err(format!("{} is Gluster's own folder", parts[0]));
        }
        Ok(Self(format!("/{}", parts.join("/"))))
    }
}

/// A volume's name, which is also part of a file's name here.
///
/// # Errors
/// What is wrong with it, in words.
pub fn volume_name(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || !text.chars().all(valid) {
        return Err("a volume's name has letters, digits, '-' and '_' only".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_with_or_without_port() {
        let server = |text: &str| text.parse::<GlusterdAddress>().map(|s| (s.host, s.port));
        assert_eq!(server("node1"), Ok(("node1".into(), 24007)));
        assert_eq!(server("10.0.0.1:99"), Ok(("10.0.0.1".into(), 99)));
        assert_eq!(server("fe80::1"), Ok(("fe80::1".into(), 24007)));
        assert_eq!(server("[fe80::1]:99"), Ok(("fe80::1".into(), 99)));
        for bad in ["", ":1", "host:", "host:x", "host:70000", "[::1]:x"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_path_cannot_leave_the_volume_or_enter_gluster_s_folders() {
        let path = |text: &str| text.parse::<ImagePath>().map(|p| p.0);
        assert_eq!(path("vms//one.img"), Ok("/vms/one.img".into()));
        assert_eq!(path("/one.img"), Ok("/one.img".into()));
        for bad in [
            "",
            "/",
            "../x",
            "a/../b",
            "./a",
            ".glusterfs/a",
            "/.shard/x",
            "a\0b",
        ] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_target_names_volume_and_image() {
        let target: Target = "gv0/vms/one.img".parse().unwrap();
        assert_eq!(
            (target.volume.as_str(), target.image.0.as_str()),
            ("gv0", "/vms/one.img")
        );
        assert!("gv0".parse::<Target>().is_err());
        assert!("../x/y".parse::<Target>().is_err());
    }
}
