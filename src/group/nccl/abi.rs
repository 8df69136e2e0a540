//! NCCL's C interface, as `nccl.h` declares it, and the functions of a library that was found.

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::Library;

use super::api::{Api, Comm, DataType, Progress, UniqueId, Version};
use super::errors::{self, Code};
use crate::error::{Error, ErrorKind, Result};

/// `ncclComm_t`.
type RawComm = *mut c_void;
/// `cudaStream_t`.
type Stream = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawId([u8; 128]);

/// The beginning of `ncclConfig_t`, as it was when non-blocking communicators came (2.14): newer
/// libraries take from it what `size` says is there.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

/// `NCCL_API_MAGIC`.
const MAGIC: u32 = 0xcafe_beef;
/// `ncclSum`.
const SUM: c_int = 0;
/// `ncclUint8`.
const BYTES: c_int = 1;

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut RawId) -> c_int;
type InitRank = unsafe extern "C" fn(*mut RawComm, c_int, RawId, c_int, *mut Config) -> c_int;
type GetAsyncError = unsafe extern "C" fn(RawComm, *mut c_int) -> c_int;
type OfComm = unsafe extern "C" fn(RawComm) -> c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, Stream) -> c_int;
type Broadcast =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, Stream) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type LastError = unsafe extern "C" fn(RawComm) -> *const c_char;

/// The functions of one library, which stays loaded until the process ends.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    version: GetVersion,
    unique_id: GetUniqueId,
    init: InitRank,
    async_error: GetAsyncError,
    finalize: OfComm,
    destroy: OfComm,
    abort: OfComm,
    all_reduce: AllReduce,
    broadcast: Broadcast,
    error_string: ErrorString,
    /// Since 2.13.
    last_error: Option<LastError>,
}

impl Functions {
    /// All that is called, out of `library`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], naming the function that is not there.
    #[allow(unsafe_code)]
    pub(super) fn of(library: &Library) -> Result<Self> {
        /// # Safety
        /// `T` is the type of the function of this name.
        unsafe fn get<T: Copy>(library: &Library, name: &str) -> Result<T> {
            // SAFETY: as the caller promises.
            let found = unsafe { library.get::<T>(name.as_bytes()) };
            found.map(|symbol| *symbol).map_err(|_| {
                let message = format!("it has no `{name}`: no NCCL, or one older than 2.14");
                Error::new(ErrorKind::Unsupported, message)
            })
        }
        // SAFETY: the types are those of `nccl.h`.
        unsafe {
            Ok(Self {
                version: get(library, "ncclGetVersion")?,
                unique_id: get(library, "ncclGetUniqueId")?,
                init: get(library, "ncclCommInitRankConfig")?,
                async_error: get(library, "ncclCommGetAsyncError")?,
                finalize: get(library, "ncclCommFinalize")?,
                destroy: get(library, "ncclCommDestroy")?,
                abort: get(library, "ncclCommAbort")?,
                all_reduce: get(library, "ncclAllReduce")?,
                broadcast: get(library, "ncclBroadcast")?,
                error_string: get(library, "ncclGetErrorString")?,
                last_error: get(library, "ncclGetLastError").ok(),
            })
        }
    }

    /// What a call came to.
    fn check(&self, what: &str, code: c_int) -> Result<Progress> {
        match Code::of(code) {
            Code::Success => Ok(Progress::Done),
            Code::InProgress => Ok(Progress::Going),
            _ => Err(self.error(what, code)),
        }
    }

    #[allow(unsafe_code)]
    fn error(&self, what: &str, code: c_int) -> Error {
        // SAFETY: takes any number, and gives a constant text.
        let meaning = unsafe { text((self.error_string)(code)) };
        // SAFETY: takes no communicator as well: the text is of this thread's last error.
        let last = self.last_error.map(|last| unsafe { text(last(std::ptr::null_mut())) });
        errors::error(what, code, &meaning, last.as_deref().unwrap_or_default())
    }
}

/// # Safety
/// Null, or a text that ends with a zero and stays as it is during the call.
#[allow(unsafe_code)]
unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

impl Api for Functions {
    #[allow(unsafe_code)]
    fn version(&self) -> Result<Version> {
        let mut number = 0;
        // SAFETY: writes one number.
        let code = unsafe { (self.version)(&raw mut number) };
        self.check("asking NCCL for its version", code)?;
        Ok(Version::of(number))
    }

    #[allow(unsafe_code)]
    fn unique_id(&self) -> Result<UniqueId> {
        let mut id = RawId([0; 128]);
        // SAFETY: writes 128 bytes.
        let code = unsafe { (self.unique_id)(&raw mut id) };
        self.check("making NCCL's unique id", code)?;
        Ok(UniqueId(id.0.to_vec()))
    }

    #[allow(unsafe_code)]
    fn init(&self, world: u32, id: &UniqueId, rank: u32) -> Result<Box<dyn Comm>> {
        let what = "joining NCCL's communicator";
        let unfit = || Error::new(ErrorKind::InvalidInput, "no unique id, or too many ranks");
        let id = RawId(<[u8; 128]>::try_from(id.0.as_slice()).map_err(|_| unfit())?);
        let number = |n: u32| c_int::try_from(n).map_err(|_| unfit());
        let (world, rank) = (number(world)?, number(rank)?);
        let mut config =
            Config { size: size_of::<Config>(), magic: MAGIC, version: 21_400, blocking: 0 };
        let mut comm = std::ptr::null_mut();
        // SAFETY: the communicator is written before it returns, and the configuration read.
        let code = unsafe { (self.init)(&raw mut comm, world, id, rank, &raw mut config) };
        match self.check(what, code) {
            Ok(_) if comm.is_null() => Err(Error::new(ErrorKind::Device, format!("{what}: none"))),
            Ok(_) => Ok(Box::new(NcclComm { functions: *self, comm })),
            Err(error) => {
                if !comm.is_null() {
                    // SAFETY: made by this call, used nowhere else.
                    let _ = unsafe { (self.abort)(comm) };
                }
                Err(error)
            }
        }
    }
}

/// A communicator; given back by [`Comm::destroy`] or [`Comm::abort`], once.
struct NcclComm {
    functions: Functions,
    comm: RawComm,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time, and lets others ask for its
// error and abort it meanwhile; `Communicator` keeps to that.
#[allow(unsafe_code)]
unsafe impl Send for NcclComm {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for NcclComm {}

#[allow(unsafe_code)]
impl Comm for NcclComm {
    fn state(&self) -> Result<Progress> {
        let mut state = 0;
        // SAFETY: the communicator lives; writes one number.
        let code = unsafe { (self.functions.async_error)(self.comm, &raw mut state) };
        self.functions.check("asking NCCL how it goes", code)?;
        self.functions.check("NCCL", state)
    }

    unsafe fn all_reduce_sum(
        &self,
        address: u64,
        count: u64,
        dtype: DataType,
        stream: Stream,
    ) -> Result<Progress> {
        let (memory, count) = place(address, count)?;
        // SAFETY: as the caller promises; sending and receiving may be the same memory.
        let code = unsafe {
            (self.functions.all_reduce)(
                memory,
                memory,
                count,
                dtype.number(),
                SUM,
                self.comm,
                stream,
            )
        };
        self.functions.check("a sum over NCCL", code)
    }

    unsafe fn broadcast(
        &self,
        root: u32,
        address: u64,
        bytes: u64,
        stream: Stream,
    ) -> Result<Progress> {
        let (memory, bytes) = place(address, bytes)?;
        let root = c_int::try_from(root).unwrap_or(c_int::MAX);
        // SAFETY: as the caller promises; sending and receiving may be the same memory.
        let code = unsafe {
            (self.functions.broadcast)(memory, memory, bytes, BYTES, root, self.comm, stream)
        };
        self.functions.check("a broadcast over NCCL", code)
    }

    fn finalize(&self) -> Result<Progress> {
        // SAFETY: the communicator lives, and nobody gives it more work.
        self.functions
            .check("ending NCCL's communicator", unsafe { (self.functions.finalize)(self.comm) })
    }

    fn destroy(&self) -> Result<()> {
        // SAFETY: the communicator lives, was finalized, and is not used again.
        self.functions
            .check("freeing NCCL's communicator", unsafe { (self.functions.destroy)(self.comm) })
            .map(drop)
    }

    fn abort(&self) -> Result<()> {
        // SAFETY: the communicator lives, and is not used again.
        self.functions
            .check("aborting NCCL's communicator", unsafe { (self.functions.abort)(self.comm) })
            .map(drop)
    }
}

/// A device's address as a pointer, which only the device follows.
fn place(address: u64, count: u64) -> Result<(*mut c_void, usize)> {
    let both = usize::try_from(address).ok().zip(usize::try_from(count).ok());
    let (address, count) =
        both.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "more than memory has addresses"))?;
    Ok((std::ptr::without_provenance_mut(address), count))
}
