// The messages of a communicator: sends and receives, of values or of codes.
#include <fmt/format.h>

#include <algorithm>

#include "comm/impl.h"
#include "kernels/codec.h"

namespace ringfold {
namespace {

constexpr size_t kMostElements = size_t{1} << 60;  // of a message

}  // namespace

Work Communicator::send(const void* data, size_t count, DataType type, int peer, int64_t tag,
                        const CallOptions& options) {
  return impl_->message({true, type, peer, const_cast<void*>(data), count, tag}, options);
}

Work Communicator::recv(void* data, size_t count, DataType type, int peer, int64_t tag, const CallOptions& options) {
  return impl_->message({false, type, peer, data, count, tag}, options);
}

Work Communicator::Impl::message(const MessageCall& m, const CallOptions& options) {
  if (may_be_staged(options)) {
    if (auto work = stage_message(m, options)) return *std::move(work);
  }
  return message_on_host(m, options);
}

// Most messages wait for nothing and end here: what is rare is elsewhere.
Work Communicator::Impl::message_on_host(const MessageCall& m, const CallOptions& options) {
  const bool fits = static_cast<int>(m.type) < kDataTypes && m.peer < size() && m.peer >= (m.send ? 0 : kAnySource) &&
                    (m.data != nullptr || m.count == 0) && m.count <= kMostElements;
  if (!fits) return refuse_message(m);
  if (options.codec && *options.codec) return coded_message(m, options);
  exec::Transfer transfer{
      .send = m.send, .peer = m.peer, .tag = m.tag, .format = {.type = m.type}, .bytes = m.count * size_of(m.type)};
  if (m.send) {
    transfer.source = static_cast<const std::byte*>(m.data);
  } else {
    transfer.target = static_cast<std::byte*>(m.data);
  }
  exec::Engine::Hold hold(engine());
  if (engine().attempt(hold, *domain_, &transfer)) return WorkAccess::done(m.send ? -1 : m.peer);
  return post(hold, transfer, options);
}

[[gnu::noinline]] Work Communicator::Impl::refuse_message(const MessageCall& m) const {
  const auto bad = [&](std::string text) {
    return Work(Status(Code::kInvalid, fmt::format("{}: {}", m.send ? "send" : "recv", text)));
  };
  if (static_cast<int>(m.type) >= kDataTypes) return bad(fmt::format("{} is no data type", static_cast<int>(m.type)));
  if (m.peer >= size() || m.peer < (m.send ? 0 : kAnySource))
    return bad(fmt::format("peer {} is not a rank of 0..{}", m.peer, size() - 1));
  return bad(m.data == nullptr ? "data is null" : "the count exceeds the address space");
}

[[gnu::noinline]] Work Communicator::Impl::post(exec::Engine::Hold& hold, const exec::Transfer& transfer,
                                                const CallOptions& options) {
  exec::Message* message = domain_->take_message().release();
  static_cast<exec::Transfer&>(*message) = transfer;
  message->deadline = deadline(options);
  message->label = options.label;
  Work work = WorkAccess::make(message);
  engine().start(hold, *domain_, message);
  return work;
}

// A message that travels as a code: encoded to memory of ours before it is sent, and decoded from there when it has
// come.
[[gnu::noinline]] Work Communicator::Impl::coded_message(const MessageCall& m, const CallOptions& options) {
  const auto [send, type, peer, data, count, tag] = m;
  const Codec codec = *options.codec;
  if (Status s = ringfold::check(codec); !s.ok()) return Work(s);
  if (codec.when_faster) {
    return Work(Status(Code::kInvalid, fmt::format("{}: {} is for collectives; a message is encoded or it is not",
                                                   send ? "send" : "recv", to_string(codec))));
  }
  if (type != DataType::kF32) {
    return Work(Status(Code::kInvalid, fmt::format("{}: codec {} is for f32, not {}", send ? "send" : "recv",
                                                   to_string(codec), name_of(type))));
  }
  const uint64_t bytes = encoded_bytes(codec, count);
  auto memory = spare_->take(std::max<uint64_t>(bytes, 1));
  if (!memory.ok()) return Work(memory.status());
  std::shared_ptr<std::byte[]> code = *std::move(memory);
  auto* values = static_cast<float*>(data);
  const auto kernels = kernels::find_cpu_codec(codec);
  exec::Transfer transfer{
      .send = send,
      .peer = peer,
      .tag = tag,
      .format = {type, codec.kind, codec.rotate, static_cast<uint32_t>(count & exec::Format::kMostCount)},
      .bytes = bytes};
  if (send) {
    kernels.encode(codec, values, count, code.get(),
                   {.key = draw_key() ^ (uint64_t{1} << 31) ^ draws_.fetch_add(1), .first = 0});
    transfer.source = code.get();
  } else {
    transfer.target = code.get();
  }
  exec::Engine::Hold hold(engine());
  exec::Message* message = domain_->take_message().release();
  static_cast<exec::Transfer&>(*message) = transfer;
  message->deadline = deadline(options);
  message->label = options.label;
  if (!send) message->decode = [=] { kernels.decode(codec, code.get(), count, values); };
  Work work = WorkAccess::make(message);
  engine().start(hold, *domain_, message);
  hold.release();
  work.then([code = std::move(code)](const Status&) {});  // the memory outlives the call
  return work;
}

}  // namespace ringfold
