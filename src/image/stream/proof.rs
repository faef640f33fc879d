//! That both ends of a stream know the volume's secret, which only a trusted glusterd tells: the
//! name and password by which its bricks are logged in to. Neither end says it.
//!
//! Each end proves it over both nonces and all that the stream is about, so no proof is of use in
//! another connection or direction. What comes after is protected by TLS where the volume asks for
//! it, and only there.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use super::message::Hello;

/// Whose proof it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The sender's.
    Sender,
    /// The receiver's.
    Receiver,
}

/// What is to be proved.
pub struct Exchange<'a> {
    /// How the sender began.
    pub hello: &'a Hello,
    /// The receiver's nonce.
    pub nonce: &'a [u8; 32],
}

/// What both ends know.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// That of a volume.
    pub fn new(name: &str, password: &str) -> Self {
        let mut key = [0; 64];
        key[..32].copy_from_slice(&Sha256::digest(password.as_bytes()));
        let mut keyed = Hmac::<Sha256>::new(&key.into());
        add(&mut keyed, name.as_bytes());
        Self(keyed)
    }

    fn over(&self, claim: &Exchange<'_>, whose: Whose) -> Hmac<Sha256> {
        let Exchange { hello, nonce } = claim;
        let mut keyed = self.0.clone();
        let whose: &[u8] = match whose {
            Whose::Sender => b"bypass-blk stream sender",
            Whose::Receiver => b"bypass-blk stream receiver",
        };
        let ids = [hello.volume, hello.image, hello.session];
        add(&mut keyed, whose);
        add(&mut keyed, &hello.version.to_le_bytes());
        ids.iter().for_each(|id| add(&mut keyed, id.as_bytes()));
        add(&mut keyed, &hello.size.to_le_bytes());
        add(&mut keyed, &hello.child.to_le_bytes());
        add(&mut keyed, &hello.nonce);
        add(&mut keyed, *nonce);
        keyed
    }

    /// The proof.
    pub fn prove(&self, claim: &Exchange<'_>, whose: Whose) -> [u8; 32] {
        self.over(claim, whose).finalize().into_bytes().into()
    }

    /// Is it one? In a time that does not tell how much of it was right.
    #[must_use]
    pub fn is_proved(&self, claim: &Exchange<'_>, whose: Whose, proof: &[u8; 32]) -> bool {
        self.over(claim, whose).verify(proof.into()).is_ok()
    }
}

/// With its length, so that nothing can be moved from one part to the next.
fn add(keyed: &mut Hmac<Sha256>, part: &[u8]) {
    keyed.update(&(part.len() as u64).to_le_bytes());
    keyed.update(part);
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::image::stream::message::VERSION;

    #[test]
    fn a_proof_is_of_one_secret_one_end_and_one_connection() {
        let hello = Hello {
            version: VERSION,
            volume: Uuid::from_u128(1),
            image: Uuid::from_u128(2),
            session: Uuid::from_u128(3),
            size: 4096,
            child: 0,
            nonce: [1; 32],
        };
        let (nonce, other) = ([2; 32], [3; 32]);
        let claim = Exchange {
            hello: &hello,
            nonce: &nonce,
        };
        let secret = Secret::new("name", "password");
        let proof = secret.prove(&claim, Whose::Sender);
        assert!(secret.is_proved(&claim, Whose::Sender, &proof));
        assert!(!secret.is_proved(&claim, Whose::Receiver, &proof));
        let later = Exchange {
            nonce: &other,
            ..claim
        };
        assert!(!secret.is_proved(&later, Whose::Sender, &proof));
        let elsewhere = Hello {
            image: Uuid::from_u128(9),
            ..hello
        };
        let elsewhere = Exchange {
            hello: &elsewhere,
            nonce: &nonce,
        };
        assert!(!secret.is_proved(&elsewhere, Whose::Sender, &proof));
        for wrong in [
            Secret::new("name", "passwort"),
            Secret::new("namep", "assword"),
        ] {
            assert!(!wrong.is_proved(&claim, Whose::Sender, &proof));
        }
    }
}
