//! Between libtorch's words and ours: [`Kind`] and [`Dtype`], [`Tensor`] and [`TensorSpec`].

use tch::{Kind, Tensor};

use super::ffi::{self, Form};
use super::torch_error;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{Dtype, TensorSpec};

/// The kinds that both sides know.
const SHARED: [(Kind, Dtype); 13] = [
    (Kind::Bool, Dtype::Bool),
    (Kind::Uint8, Dtype::U8),
    (Kind::Int8, Dtype::I8),
    (Kind::Float8e5m2, Dtype::F8E5M2),
    (Kind::Float8e4m3fn, Dtype::F8E4M3),
    (Kind::Int16, Dtype::I16),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int, Dtype::I32),
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::ComplexFloat, Dtype::C64),
];

/// The dtype of a kind.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for kinds that checkpoints do not know (quantised, complex128, …).
pub fn dtype_of(kind: Kind) -> Result<Dtype> {
    let found = SHARED.iter().find(|(k, _)| *k == kind);
    found.map(|(_, dtype)| *dtype).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("tensors of kind {kind:?} cannot be stored"))
    })
}

/// The kind of a dtype.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for dtypes that `tch` has no kind for (U16, U32, U64).
pub fn kind_of(dtype: Dtype) -> Result<Kind> {
    let found = SHARED.iter().find(|(_, d)| *d == dtype);
    found.map(|(kind, _)| *kind).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("tch has no tensors of dtype {dtype}"))
    })
}

/// Dtype and shape of a tensor that can be stored.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for undefined, sparse, quantised and opaque tensors, and for kinds
/// that [`dtype_of`] refuses.
pub fn spec_of(tensor: &Tensor) -> Result<TensorSpec> {
    let refused = match ffi::describe(tensor)?.form {
        Form::Dense | Form::Lazy => None,
        Form::Undefined => Some("an undefined tensor"),
        Form::Sparse => Some("a sparse tensor"),
        Form::Quantised => Some("a quantised tensor"),
        Form::Opaque => Some("a tensor without plain storage (mkldnn, meta, nested)"),
    };
    if let Some(what) = refused {
        let message = format!("{what} cannot be stored");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_help("convert it to a dense tensor first"));
    }
    let kind = tensor.f_kind().map_err(|e| {
        torch_error("reading the kind of a tensor", &e).with_kind(ErrorKind::Unsupported)
    })?;
    let shape: Vec<u64> = tensor.size().into_iter().map(i64::unsigned_abs).collect();
    TensorSpec::new(dtype_of(kind)?, shape)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn every_dtype_converts_back_or_is_refused() {
        for dtype in Dtype::ALL {
            match kind_of(dtype) {
                Ok(kind) => {
                    assert_eq!(dtype_of(kind).unwrap(), dtype);
                    assert_eq!(kind.elt_size_in_bytes() as u64, dtype.size_bytes());
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(matches!(dtype, Dtype::U16 | Dtype::U32 | Dtype::U64), "{dtype}");
                }
            }
        }
        for kind in [Kind::ComplexDouble, Kind::QInt8, Kind::ComplexHalf] {
            let error = dtype_of(kind).unwrap_err();
            assert!(error.message().contains(&format!("{kind:?}")), "{error}");
        }
    }

    #[test]
    fn dense_tensors_have_a_spec() {
        let tensor = Tensor::zeros([2, 0, 3], (Kind::BFloat16, Device::Cpu));
        assert_eq!(spec_of(&tensor).unwrap(), TensorSpec::new(Dtype::BF16, [2, 0, 3]).unwrap());
        let scalar = Tensor::from(7i64);
        assert_eq!(spec_of(&scalar).unwrap(), TensorSpec::new(Dtype::I64, []).unwrap());
    }

    #[test]
    fn tensors_that_are_no_plain_bytes_are_refused() {
        let dense = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let refused = [
            Tensor::new(),
            dense.to_sparse_sparse_dim(2),
            dense.to_sparse_csr(None),
            dense.to_mkldnn(),
            dense.quantize_per_tensor(0.1, 0, Kind::QInt8),
            dense.to_kind(Kind::ComplexDouble),
        ];
        for tensor in refused {
            assert_eq!(spec_of(&tensor).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }
}
