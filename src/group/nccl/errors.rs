//! NCCL's result codes as errors of this crate, with NCCL's own words.

use std::ffi::c_int;

use crate::error::{Error, ErrorKind};

/// `ncclResult_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Success,
    UnhandledCuda,
    System,
    Internal,
    InvalidArgument,
    InvalidUsage,
    Remote,
    InProgress,
    Unknown,
}

impl Code {
    pub(super) fn of(code: c_int) -> Self {
        match code {
            0 => Self::Success,
            1 => Self::UnhandledCuda,
            2 => Self::System,
            3 => Self::Internal,
            4 => Self::InvalidArgument,
            5 => Self::InvalidUsage,
            6 => Self::Remote,
            7 => Self::InProgress,
            _ => Self::Unknown,
        }
    }

    fn kind(self) -> ErrorKind {
        match self {
            Self::InvalidArgument | Self::InvalidUsage => ErrorKind::InvalidInput,
            Self::Remote => ErrorKind::PeerLost,
            _ => ErrorKind::Device,
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::UnhandledCuda => "does `nvidia-smi` show the GPU, and does its driver fit NCCL?",
            Self::System => {
                "can the hosts reach one another? NCCL_SOCKET_IFNAME chooses the network, \
                 NCCL_DEBUG=INFO shows what NCCL does; in a container /dev/shm may be too small"
            }
            Self::InvalidUsage => {
                "two ranks on one GPU are not allowed: give each rank one of its own \
                 (CUDA_VISIBLE_DEVICES, LOCAL_RANK)"
            }
            Self::Remote => "another rank ended or lost its network: look at its own message",
            _ => "NCCL_DEBUG=INFO shows what NCCL does",
        }
    }
}

/// What `code` of `what` means; `meaning` is NCCL's word for the code, `last` what it has said last.
pub(super) fn error(what: &str, code: c_int, meaning: &str, last: &str) -> Error {
    let known = Code::of(code);
    let meaning = if meaning.is_empty() { "an unknown error" } else { meaning };
    let last = last.trim();
    let message = match last {
        "" => format!("{what}: {meaning} ({code})"),
        last => format!("{what}: {meaning} ({code}): {last}"),
    };
    Error::new(known.kind(), message).with_help(known.help())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_kind_and_says_what_nccl_said() {
        use ErrorKind::{Device, InvalidInput, PeerLost};
        let kinds = [Device, Device, Device, InvalidInput, InvalidInput, PeerLost];
        for (code, kind) in (1..).zip(kinds) {
            let error = error("a sum over NCCL", code, "its meaning", "what it said\\n");
            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.message().contains("its meaning") && error.message().contains("it said"));
            assert!(error.help().is_some());
        }
        assert_eq!(error("x", 99, "", "").message(), "x: an unknown error (99)");
        assert_eq!(Code::of(7), Code::InProgress);
        assert_eq!(Code::of(-1), Code::Unknown);
    }
}
