use super::*;
use crate::tensor::Dtype;
use crate::torch::convert::kind_of;

/// A tensor of any dtype whose bytes are all different from a simple pattern's neighbours.
fn patterned(dtype: Dtype, shape: &[i64]) -> Tensor {
    let elements: i64 = shape.iter().product();
    let length = usize::try_from(elements).unwrap() * usize::try_from(dtype.size_bytes()).unwrap();
    let modulus = if dtype == Dtype::Bool { 2 } else { 113 };
    let bytes: Vec<u8> = (0..length).map(|i| u8::try_from(i % modulus).unwrap()).collect();
    Tensor::f_from_data_size(&bytes, shape, kind_of(dtype).unwrap()).unwrap()
}

fn shared_dtypes() -> impl Iterator<Item = Dtype> {
    Dtype::ALL.into_iter().filter(|d| kind_of(*d).is_ok())
}

fn read_all(source: &TchSource) -> Vec<u8> {
    let mut out = vec![0xAAu8; usize::try_from(source.spec().size_bytes()).unwrap()];
    source.read_into(0, &mut out).unwrap();
    out
}

/// The bytes that `source` must give, by a way of its own.
fn expected(tensor: &Tensor) -> Vec<u8> {
    let contiguous = tensor.contiguous();
    let mut out = vec![0u8; contiguous.numel() * contiguous.kind().elt_size_in_bytes()];
    contiguous.copy_data_u8(&mut out, contiguous.numel());
    out
}

#[test]
fn contiguous_tensors_of_every_dtype_pass_without_a_copy() {
    for dtype in shared_dtypes() {
        for shape in [&[][..], &[0], &[3, 0, 2], &[1], &[5, 7]] {
            let tensor = patterned(dtype, shape);
            let source = TchSource::new(&tensor).unwrap();
            let bytes = source.bytes().unwrap();
            if tensor.numel() > 0 {
                assert_eq!(bytes.as_ptr(), tensor.data_ptr().cast_const().cast::<u8>());
            }
            assert_eq!(bytes, expected(&tensor), "{dtype} {shape:?}");
            let mut back = tensor.zeros_like();
            TchSink::new(&back).unwrap().write_at(0, bytes).unwrap();
            assert_eq!(expected(&back), expected(&tensor), "{dtype} {shape:?}");
            back = back.view([-1]);
            assert_eq!(back.kind(), kind_of(dtype).unwrap());
        }
    }
}

#[test]
fn strided_tensors_of_every_dtype_read_and_write_at_any_offset() {
    for dtype in shared_dtypes() {
        let tensor = patterned(dtype, &[6, 5]).transpose(0, 1);
        let source = TchSource::new(&tensor).unwrap();
        assert!(source.bytes().is_none());
        let all = expected(&tensor);
        assert_eq!(read_all(&source), all, "{dtype}");
        let target = patterned(dtype, &[6, 5]).zeros_like().transpose(0, 1);
        let mut sink = TchSink::new(&target).unwrap();
        // Pieces of 3 bytes cut through elements of every wider dtype.
        for (i, piece) in all.chunks(3).enumerate() {
            let mut out = vec![0u8; piece.len()];
            source.read_into(i as u64 * 3, &mut out).unwrap();
            assert_eq!(out, piece, "{dtype}");
            sink.write_at(i as u64 * 3, piece).unwrap();
        }
        assert_eq!(expected(&target), all, "{dtype}");
    }
}

#[test]
fn a_strided_tensor_larger_than_one_gather_is_whole() {
    let rows = GATHER_ELEMENTS_MAX / 256 + 3;
    let tensor = patterned(Dtype::I16, &[256, rows]).transpose(0, 1);
    let all = expected(&tensor);
    assert_eq!(read_all(&TchSource::new(&tensor).unwrap()), all);
    let target = patterned(Dtype::I16, &[256, rows]).zeros_like().transpose(0, 1);
    TchSink::new(&target).unwrap().write_at(0, &all).unwrap();
    assert!(target.equal(&tensor));
}

#[test]
fn what_is_prepared_to_be_written_keeps_its_content() {
    let strided = patterned(Dtype::I16, &[700, 500]).transpose(0, 1);
    for tensor in [strided.contiguous(), strided, Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))]
    {
        let before = tensor.copy();
        let version = tensor.f_internal_version().unwrap();
        TchSink::new(&tensor).unwrap().prepare().unwrap();
        assert!(tensor.equal(&before));
        assert_eq!(tensor.f_internal_version().unwrap(), version);
    }
}

#[test]
fn what_lies_outside_a_view_stays_as_it_is() {
    let whole = patterned(Dtype::F32, &[4, 4]);
    let before = whole.copy();
    let view = whole.narrow(1, 1, 2);
    let mut sink = TchSink::new(&view).unwrap();
    sink.write_at(4, &1.5f32.to_le_bytes()).unwrap();
    assert_eq!(whole.double_value(&[0, 2]), 1.5);
    whole.get(0).get(2).copy_(&before.get(0).get(2));
    assert!(whole.equal(&before));
}

#[test]
fn ranges_outside_the_tensor_are_errors() {
    for tensor in [patterned(Dtype::F32, &[4]), patterned(Dtype::F32, &[3, 2]).transpose(0, 1)] {
        let size = u64::try_from(tensor.numel() * 4).unwrap();
        let source = TchSource::new(&tensor).unwrap();
        let mut sink = TchSink::new(&tensor).unwrap();
        for offset in [size, size - 1, u64::MAX] {
            let mut out = [0u8; 2];
            let error = source.read_into(offset, &mut out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let error = sink.write_at(offset, &out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }
}

#[test]
fn leaves_that_require_grad_are_filled_without_autograd() {
    let variable = Tensor::zeros([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    TchSink::new(&variable).unwrap().write_at(4, &2f32.to_le_bytes()).unwrap();
    assert_eq!(Vec::<f32>::try_from(&variable).unwrap(), [0.0, 2.0, 0.0]);
    assert!(variable.requires_grad() && variable.is_leaf());
}

#[test]
fn lazy_conjugates_are_saved_as_what_they_mean() {
    let complex = patterned(Dtype::C64, &[3]);
    let lazy = complex.conj();
    let source = TchSource::new(&lazy).unwrap();
    assert_eq!(read_all(&source), expected(&complex.conj_physical()));
    assert_ne!(read_all(&source), expected(&complex));
    assert_eq!(TchSink::new(&lazy).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn expanded_tensors_are_saved_but_never_filled() {
    let expanded = patterned(Dtype::F32, &[1, 3]).expand([4, 3], false);
    assert_eq!(read_all(&TchSource::new(&expanded).unwrap()), expected(&expanded));
    assert_eq!(TchSink::new(&expanded).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_source_outlives_its_variable() {
    let tensor = patterned(Dtype::F32, &[1000]);
    let all = expected(&tensor);
    let source = TchSource::new(&tensor).unwrap();
    drop(tensor);
    let threads: Vec<_> = std::thread::scope(|scope| {
        let read = || scope.spawn(|| read_all(&source));
        [read(), read()].map(|t| t.join().unwrap()).into()
    });
    assert!(threads.iter().all(|bytes| *bytes == all));
}

/// Steady tensors are read without a reference to them, on any path of the shim.
#[test]
fn a_tensor_in_host_memory_reads_the_same_at_any_place() {
    let tensor = patterned(Dtype::U8, &[300_001]);
    let (all, source) = (expected(&tensor), TchSource::new(&tensor).unwrap().steady());
    for (begin, len) in [(0, 300_001), (1, 32_768), (17, 32_767), (5, 0), (300_000, 1), (3, 99_999)]
    {
        for skip in [0, 1, 9] {
            let mut out = vec![0xEE; skip + len + 1];
            source.read_into(begin as u64, &mut out[skip..skip + len]).unwrap();
            assert_eq!(out[skip..skip + len], all[begin..begin + len], "{begin} {len} {skip}");
            assert!(out[..skip].iter().chain(&out[skip + len..]).all(|byte| *byte == 0xEE));
        }
    }
    assert!(source.read_into(300_000, &mut [0; 2]).is_err());
    let scalar = TchSource::new(&Tensor::from(7i64)).unwrap().steady();
    assert_eq!(read_all(&scalar), 7i64.to_le_bytes());
    assert!(
        read_all(&TchSource::new(&patterned(Dtype::F32, &[3, 0])).unwrap().steady()).is_empty()
    );
}
