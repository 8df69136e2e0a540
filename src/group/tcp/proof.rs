//! How both sides of a new connection show that they know the job's id and token, of which neither
//! travels: each sends a keyed hash of what rank 0 has drawn for this connection alone, so that what
//! was heard on one opens no other.

use super::handshake::Hello;
use crate::error::{Error, ErrorKind, Result};

/// A challenge or a proof.
pub(super) type Code = [u8; 32];

/// Separates this key from every other use of the same token.
const CONTEXT: &str = "tch-checkpoint control plane, version 3, key of a job";

/// Who proves.
#[derive(Clone, Copy)]
pub(super) enum Side {
    /// Any other rank, first.
    Caller,
    /// Rank 0, to whom has proved it.
    Coordinator,
}

/// What all ranks of a job know.
pub(super) struct Secret(Code);

impl Secret {
    pub(super) fn new(job: &str, token: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for name in [job, token] {
            // With its length, so that no other two names give the same key.
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// What `side` answers to `challenge` on the connection that began with `hello`.
    pub(super) fn proof(&self, side: Side, challenge: &Code, hello: &Hello) -> Code {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[match side {
            Side::Caller => 1,
            Side::Coordinator => 2,
        }]);
        *hasher.update(challenge).update(&hello.to_bytes()).finalize().as_bytes()
    }

    /// Whether `proof` is that of `side`; takes the same time wherever it is wrong.
    pub(super) fn is_proved(
        &self,
        side: Side,
        challenge: &Code,
        hello: &Hello,
        proof: &[u8],
    ) -> bool {
        let ours = blake3::Hash::from_bytes(self.proof(side, challenge, hello));
        // Of two hashes, in constant time.
        proof.try_into().is_ok_and(|theirs: Code| ours == blake3::Hash::from_bytes(theirs))
    }
}

/// A number that nobody can foresee.
pub(super) fn challenge() -> Result<Code> {
    let mut bytes = Code::default();
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Storage, format!("no random numbers: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::handshake::Plane;
    use super::*;

    #[test]
    fn a_proof_is_good_for_one_side_of_one_connection_of_one_job() {
        let hello = |rank| Hello {
            big_endian: false,
            with_data: true,
            plane: Plane::Control,
            world: 4,
            rank,
            process: 9,
            attempt: 8,
        };
        let (secret, drawn) = (Secret::new("job", "token"), challenge().unwrap());
        let proof = secret.proof(Side::Caller, &drawn, &hello(1));
        let is_proved = |secret: &Secret, side, drawn: &Code, hello: &Hello| {
            secret.is_proved(side, drawn, hello, &proof)
        };
        assert!(is_proved(&secret, Side::Caller, &drawn, &hello(1)));
        assert!(!is_proved(&secret, Side::Coordinator, &drawn, &hello(1)));
        assert!(!is_proved(&secret, Side::Caller, &challenge().unwrap(), &hello(1)));
        assert!(!is_proved(&secret, Side::Caller, &drawn, &hello(2)));
        for (job, token) in [("job", "other"), ("other", "token"), ("jobt", "oken"), ("", "")] {
            assert!(!is_proved(&Secret::new(job, token), Side::Caller, &drawn, &hello(1)));
        }
        for cut in 0..proof.len() {
            assert!(!secret.is_proved(Side::Caller, &drawn, &hello(1), &proof[..cut]));
        }
    }
}
