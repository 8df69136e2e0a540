//! The few requests of ptrace(2) that following a program takes.

use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_int, c_long, c_void, user_regs_struct};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("system calls are made to fail through the registers of x86_64");

/// What a thread that is followed has come to.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// The end of the thread, or of the process if it is its first: its exit code, if no signal.
    Ended(Option<i32>),
    /// Before or after a system call.
    Call,
    /// A signal, which it has not got yet.
    Signal(c_int),
    /// A new thread, a new process, another program: nothing to be delivered.
    Event,
}

/// One side of a system call.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// It is about to begin.
    Entry { number: u64, arguments: [u64; 6] },
    /// It has ended, with this result, or the error if negative.
    Exit { result: i64 },
}

/// A register of a stopped thread.
#[derive(Debug, Clone, Copy)]
pub enum Register {
    /// Number of the call; -1 keeps the kernel from carrying it out.
    Number,
    Result,
    /// The third argument: the length, for all calls that write.
    Third,
}

/// Makes the calling thread follow `command` from its first instruction.
#[allow(unsafe_code)]
pub fn follow(command: &mut Command) {
    // SAFETY: between fork and exec there is this one call, which is safe in a signal handler.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// The next stop of any thread that the calling thread follows; `None` once there are none left.
#[allow(unsafe_code)]
pub fn wait() -> Option<(i32, Stop)> {
    let mut status: c_int = 0;
    let tid = loop {
        // Other threads of this process follow programs of their own: hence WNOTHREAD.
        // SAFETY: `status` outlives the call.
        let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        match io::Error::last_os_error().raw_os_error() {
            _ if tid > 0 => break tid,
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return None,
            error => panic!("waiting for what is followed: {error:?}"),
        }
    };
    let stop = if libc::WIFEXITED(status) {
        Stop::Ended(Some(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Stop::Ended(None)
    } else if status >> 16 != 0 {
        Stop::Event
    } else if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
        Stop::Call
    } else {
        Stop::Signal(libc::WSTOPSIG(status))
    };
    Some((tid, stop))
}

/// Follows also what this stopped process begins, and kills everything if this thread ends.
pub fn follow_children(tid: i32) {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize);
}

/// Lets a stopped thread go on to the next side of a system call, with `signal` unless 0.
pub fn resume(tid: i32, signal: c_int) {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize);
}

/// On which side of which call a stopped thread is; `None` if it was killed meanwhile.
#[allow(unsafe_code)]
pub fn side(tid: i32) -> Option<Side> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    if request(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr() as usize) <= 0 {
        return None;
    }
    // SAFETY: all zeros is a value of this type, and the kernel has filled the union as `op` says.
    unsafe {
        let info = info.assume_init();
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                let entry = info.u.entry;
                Some(Side::Entry { number: entry.nr, arguments: entry.args })
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => Some(Side::Exit { result: info.u.exit.sval }),
            _ => None,
        }
    }
}

/// Sets a register of a stopped thread.
pub fn set(tid: i32, register: Register, value: i64) {
    let offset = match register {
        Register::Number => offset_of!(user_regs_struct, orig_rax),
        Register::Result => offset_of!(user_regs_struct, rax),
        Register::Third => offset_of!(user_regs_struct, rdx),
    };
    request(libc::PTRACE_POKEUSER, tid, offset, value as usize);
}

/// A thread that was killed meanwhile is no error: its end is reported by [`wait`].
#[allow(unsafe_code)]
fn request(what: libc::c_uint, tid: i32, address: usize, data: usize) -> c_long {
    // SAFETY: `data` is a number, or points to memory of the size that `address` states.
    let done = unsafe { libc::ptrace(what, tid, address as *mut c_void, data as *mut c_void) };
    let error = io::Error::last_os_error();
    assert!(done != -1 || error.raw_os_error() == Some(libc::ESRCH), "ptrace {what}: {error}");
    done
}
