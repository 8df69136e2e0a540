// What checkpointing needs of libtorch's public C++ API and torch-sys does not expose.
//
// Contract of every function: no exception leaves it; 0 is success; otherwise `message` (of
// `message_size` bytes) holds text that ends with a zero byte. Tensors are torch-sys' pointers.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/version.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace {

void report(const char* text, char* message, size_t message_size) noexcept {
  if (message == nullptr || message_size == 0) return;
  std::strncpy(message, text, message_size - 1);
  message[message_size - 1] = '\0';
}

template <typename Body>
int guarded(char* message, size_t message_size, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    report(error.what_without_backtrace(), message, message_size);
  } catch (const std::exception& error) {
    report(error.what(), message, message_size);
  } catch (...) {
    report("an exception of an unknown type", message, message_size);
  }
  return 1;
}

// Past the caches, which training needs, where that is worth it.
void copy_bytes(const uint8_t* from, uint8_t* to, size_t size) {
#ifdef __SSE2__
  if (size >= 32 * 1024) {
    const size_t head = (16 - reinterpret_cast<uintptr_t>(to) % 16) % 16;
    std::memcpy(to, from, head);
    size_t at = head;
    for (; at + 16 <= size; at += 16) {
      const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at), word);
    }
    _mm_sfence();
    std::memcpy(to + at, from + at, size - at);
    return;
  }
#endif
  std::memcpy(to, from, size);
}

bool is_sparse_layout(c10::Layout layout) {
  return layout == c10::kSparse || layout == c10::kSparseCsr || layout == c10::kSparseCsc ||
         layout == c10::kSparseBsr || layout == c10::kSparseBsc;
}

at::Generator generator_of(int cuda_index) {
  if (cuda_index < 0) return at::detail::getDefaultCPUGenerator();
  // A larger number would be cut to that of another device.
  TORCH_CHECK(cuda_index <= std::numeric_limits<c10::DeviceIndex>::max(), "no CUDA device ",
              cuda_index);
  auto device = c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(cuda_index));
  return at::globalContext().defaultGenerator(device);
}

}  // namespace

extern "C" {

enum Form : int32_t {
  DENSE = 0,
  UNDEFINED = 1,
  SPARSE = 2,
  QUANTISED = 3,
  OPAQUE = 4,  // no plain storage: mkldnn, meta, nested
  LAZY = 5,    // dense, but its bytes are still to be conjugated or negated
};

struct tch_checkpoint_description {
  int32_t form;
  // Equal for two handles of one variable, even when it is empty or was moved to a device.
  uint64_t identity;
};

int tch_checkpoint_describe(const at::Tensor* tensor, tch_checkpoint_description* out,
                            char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    out->identity = reinterpret_cast<uintptr_t>(tensor->unsafeGetTensorImpl());
    if (!tensor->defined()) {
      out->form = UNDEFINED;
    } else if (is_sparse_layout(tensor->layout())) {
      out->form = SPARSE;
    } else if (tensor->is_quantized()) {
      out->form = QUANTISED;
    } else if (tensor->layout() != c10::kStrided || tensor->is_nested() || tensor->is_meta() ||
               !tensor->has_storage()) {
      out->form = OPAQUE;
    } else {
      out->form = tensor->is_conj() || tensor->is_neg() ? LAZY : DENSE;
    }
  });
}

// self += alpha * other
int tch_checkpoint_add(at::Tensor* self, const at::Tensor* other, double alpha, char* message,
                       size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    at::NoGradGuard no_grad;
    self->add_(*other, alpha);
  });
}

// self += value * a * b
int tch_checkpoint_addcmul(at::Tensor* self, const at::Tensor* a, const at::Tensor* b,
                           double value, char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    at::NoGradGuard no_grad;
    self->addcmul_(*a, *b, value);
  });
}

// self += value * a / b
int tch_checkpoint_addcdiv(at::Tensor* self, const at::Tensor* a, const at::Tensor* b,
                           double value, char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    at::NoGradGuard no_grad;
    self->addcdiv_(*a, *b, value);
  });
}

// For changes that libtorch does not see.
int tch_checkpoint_count_change(const at::Tensor* tensor, char* message,
                                size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    if (!tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();
  });
}

// Copies on the calling thread alone: a copy of libtorch would take its other threads from training.
int tch_checkpoint_read(const at::Tensor* tensor, size_t offset, uint8_t* out, size_t size,
                        char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    copy_bytes(static_cast<const uint8_t*>(tensor->const_data_ptr()) + offset, out, size);
  });
}

int tch_checkpoint_clear_grad(at::Tensor* tensor, char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] { tensor->mutable_grad().reset(); });
}

// What was in force on this thread before `enter`.
struct tch_checkpoint_autocast {
  int32_t cuda;
  int32_t enabled;
  int32_t dtype;
};

// Turns autocast on for this thread and for the CPU or CUDA.
int tch_checkpoint_autocast_enter(bool cuda, bool bfloat16, tch_checkpoint_autocast* previous,
                                  char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    auto device = cuda ? at::kCUDA : at::kCPU;
    previous->cuda = cuda;
    previous->enabled = at::autocast::is_autocast_enabled(device);
    previous->dtype = static_cast<int32_t>(at::autocast::get_autocast_dtype(device));
    at::autocast::set_autocast_dtype(device, bfloat16 ? at::kBFloat16 : at::kHalf);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  });
}

// Puts back what `enter` found; the outermost one also forgets the weights that were cast.
int tch_checkpoint_autocast_leave(const tch_checkpoint_autocast* previous, char* message,
                                  size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    auto device = previous->cuda ? at::kCUDA : at::kCPU;
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device, previous->enabled);
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(previous->dtype));
  });
}

// The state of the default generator of the CPU (`cuda_index` < 0) or of a CUDA device. `length`
// receives its size; it is copied only if it fits `capacity`.
int tch_checkpoint_get_rng(int cuda_index, uint8_t* out, size_t capacity, size_t* length,
                           char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    auto generator = generator_of(cuda_index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    auto state = generator.get_state().contiguous();
    *length = state.nbytes();
    if (*length <= capacity) std::memcpy(out, state.const_data_ptr(), *length);
  });
}

// Sets the state of that generator; if `only_check`, that of a copy which is thrown away, so that
// the generator itself is not touched.
int tch_checkpoint_set_rng(int cuda_index, const uint8_t* bytes, size_t length, bool only_check,
                           char* message, size_t message_size) noexcept {
  return guarded(message, message_size, [&] {
    auto state = at::empty({static_cast<int64_t>(length)}, at::TensorOptions().dtype(at::kByte));
    std::memcpy(state.mutable_data_ptr(), bytes, length);
    auto generator = generator_of(cuda_index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    auto target = only_check ? generator.clone() : generator;
    target.set_state(state);
  });
}

// The version of the libtorch that this was compiled against; never null.
const char* tch_checkpoint_version() noexcept { return TORCH_VERSION; }

}  // extern "C"
