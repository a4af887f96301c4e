// The exchange, with I the side that connected and A the side that accepted:
//
//   I -> A   greeting: magic, version, role, nonce_I
//   A -> I   greeting: magic, version, role, nonce_A;   proof_A = |hello_A|, MAC("proof", A, |hello_A|)
//   I -> A   proof_I = |hello_I|, MAC("proof", I, |hello_I|);   hello_I, MAC("hello", I, hello_I)
//   A -> I   hello_A, MAC("hello", A, hello_A)
//
// Every MAC is HMAC-SHA256 under a session key, which is itself HMAC-SHA256(job key, greeting_I, greeting_A). So
// - a proof is worth something only between these two nonces: an old one cannot be replayed, and a changed greeting
//   gives another session key and thereby a wrong proof;
// - the role is in the greeting and in every MAC: a proof sent back to its author proves nothing;
// - a hello leaves this process only after the other side has proved the key, and its length, which decides how much
// is
//   read, is covered by the proof, so nothing of unproved size is ever buffered;
// - what is looked at before a proof is of fixed size: magic, version and role, to say in words what the other end
// is. After the handshake the stream itself is neither encrypted nor authenticated: the key keeps strangers and other
// jobs out, it does not protect against somebody who can rewrite packets of the network.
#include "base/handshake.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>

namespace ringfold::base {
namespace {

constexpr std::string_view kMagic = "RINGFOLD";

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

Status system_error(std::string_view what, const std::string& path) {
  const Code code = errno == EACCES || errno == EPERM ? Code::kDenied : Code::kIo;
  return Status(code, fmt::format("cannot {} the key file '{}': {}", what, path, std::strerror(errno)));
}

// False only when the library has no SHA-256 or no memory.
bool hmac(std::string_view key, std::initializer_list<std::string_view> parts, unsigned char out[32]) {
  static EVP_MAC* const algorithm = EVP_MAC_fetch(nullptr, "HMAC", nullptr);
  if (!algorithm) return false;
  std::unique_ptr<EVP_MAC_CTX, decltype(&EVP_MAC_CTX_free)> context(EVP_MAC_CTX_new(algorithm), &EVP_MAC_CTX_free);
  char digest[] = "SHA256";
  const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                                   OSSL_PARAM_construct_end()};
  const auto bytes = [](std::string_view s) { return reinterpret_cast<const unsigned char*>(s.data()); };
  if (!context || !EVP_MAC_init(context.get(), bytes(key), key.size(), parameters)) return false;
  for (std::string_view part : parts) {
    if (!EVP_MAC_update(context.get(), bytes(part), part.size())) return false;
  }
  size_t size = 0;
  return EVP_MAC_final(context.get(), out, &size, 32) && size == 32;
}

std::string printable(std::string_view bytes) {
  std::string text;
  for (unsigned char c : bytes)
    text += c >= 32 && c < 127 ? std::string(1, static_cast<char>(c)) : fmt::format("\\x{:02x}", c);
  return text;
}

std::string_view role_name(Handshake::Role role) {
  return role == Handshake::Role::kInitiator ? "initiator" : "acceptor";
}

}  // namespace

struct Key::Secret {
  explicit Secret(std::string_view t) : text(t) {}
  ~Secret() { OPENSSL_cleanse(text.data(), text.size()); }
  std::string text;
};

std::string_view Key::text() const { return secret_->text; }

Result<Key> Key::generate() {
  unsigned char random[32];
  if (RAND_bytes(random, sizeof random) != 1)
    return Status(Code::kInternal, "the system gave no random bytes for a key");
  char text[2 * sizeof random];
  for (size_t i = 0; i < sizeof random; ++i) {
    text[2 * i] = "0123456789abcdef"[random[i] >> 4];
    text[2 * i + 1] = "0123456789abcdef"[random[i] & 15];
  }
  Key key(std::make_shared<const Secret>(std::string_view(text, sizeof text)));
  OPENSSL_cleanse(random, sizeof random);
  OPENSSL_cleanse(text, sizeof text);
  return key;
}

Result<Key> Key::parse(std::string_view text) {
  while (!text.empty() && std::strchr(" \t\r\n", text.back())) text.remove_suffix(1);
  if (text.size() < kMinBytes || text.size() > kMaxBytes) {
    return Status(Code::kInvalid,
                  fmt::format("a key needs {} to {} bytes, this one has {}; `openssl rand -hex 32` makes one",
                              kMinBytes, kMaxBytes, text.size()));
  }
  return Key(std::make_shared<const Secret>(text));
}

Result<Key> Key::load(const std::string& path) {
  File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.fd() < 0) return system_error("open", path);
  struct stat st {};
  if (::fstat(file.fd(), &st) != 0) return system_error("inspect", path);
  if (!S_ISREG(st.st_mode))
    return Status(Code::kInvalid, fmt::format("the key file '{}' is not a regular file", path));
  if (st.st_uid != ::geteuid() && st.st_uid != 0) {
    return Status(Code::kDenied, fmt::format("the key file '{}' belongs to user {}, not to this user ({}) or root",
                                             path, st.st_uid, ::geteuid()));
  }
  if (st.st_mode & 077) {
    return Status(Code::kDenied,
                  fmt::format("the key file '{}' has mode {:04o}: others may use it; run: chmod 600 '{}'", path,
                              st.st_mode & 07777, path));
  }
  char text[kMaxBytes + 2];
  size_t size = 0;
  ssize_t got = 0;
  while (size < sizeof text && (got = ::read(file.fd(), text + size, sizeof text - size)) != 0) {
    if (got > 0) size += static_cast<size_t>(got);
    if (got < 0 && errno != EINTR) return system_error("read", path);
  }
  Result<Key> key = parse(std::string_view(text, size));
  OPENSSL_cleanse(text, sizeof text);
  if (!key.ok()) return Status(key.status().code(), fmt::format("key file '{}': {}", path, key.status().message()));
  return key;
}

Status Key::save(const std::string& path) const {
  File file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.fd() < 0) return system_error("create", path);
  std::string_view rest = text();
  while (!rest.empty()) {
    const ssize_t put = ::write(file.fd(), rest.data(), rest.size());
    if (put > 0) rest.remove_prefix(static_cast<size_t>(put));
    if (put < 0 && errno != EINTR) return system_error("write", path);
  }
  return {};
}

Handshake::Handshake(const Key& key, Role role, std::string hello)
    : key_(key), role_(role), hello_(std::move(hello)) {
  if (hello_.size() > kMaxHello) {
    fail(Code::kInvalid, fmt::format("a hello of {} bytes; the limit is {}", hello_.size(), kMaxHello));
    return;
  }
  unsigned char nonce[kNonceBytes];
  if (RAND_bytes(nonce, sizeof nonce) != 1) {
    fail(Code::kInternal, "the system gave no random bytes for a nonce");
    return;
  }
  greeting_ = head() + std::string(reinterpret_cast<const char*>(nonce), sizeof nonce);
  // The acceptor stays silent until the other side has shown that it speaks this protocol.
  if (role_ == Role::kInitiator) output_ = greeting_;
}

std::string Handshake::take_output() { return std::exchange(output_, {}); }

size_t Handshake::consume(std::span<const std::byte> bytes) {
  size_t used = 0;
  while (state_ == State::kPending && used < bytes.size()) {
    const size_t n = std::min(target_ - input_.size(), bytes.size() - used);
    input_.append(reinterpret_cast<const char*>(bytes.data()) + used, n);
    used += n;
    if (input_.size() == target_) step();
  }
  return used;
}

void Handshake::end_of_input() {
  if (state_ != State::kPending) return;
  if (stage_ == Stage::kHead && input_.empty() && role_ == Role::kAcceptor) {
    return fail(Code::kProtocol, "not a Ringfold peer: it closed the connection without a word");
  }
  if (stage_ == Stage::kProof || stage_ == Stage::kHello) {
    return fail(Code::kDenied,
                "the peer closed the connection during the handshake: most likely this side does not hold "
                "the peer's key; both must use one key file");
  }
  fail(Code::kPeerLost, "the peer closed the connection during the handshake");
}

void Handshake::step() {
  switch (stage_) {
    case Stage::kHead: return read_head();
    case Stage::kNonce: return read_nonce();
    case Stage::kProof: return read_proof();
    case Stage::kHello: return read_hello();
  }
}

void Handshake::expect(Stage stage, size_t bytes) {
  input_.clear();
  stage_ = stage;
  target_ = bytes;
}

void Handshake::read_head() {
  if (!input_.starts_with(kMagic)) {
    return fail(Code::kProtocol, fmt::format("not a Ringfold peer: it began with '{}'", printable(input_)));
  }
  const int version = static_cast<unsigned char>(input_[8]) | static_cast<unsigned char>(input_[9]) << 8;
  if (version != kVersion) {
    if (role_ == Role::kAcceptor) output_ += head();
    return fail(Code::kProtocol,
                fmt::format("the peer speaks version {} of Ringfold's handshake and this side version {}: "
                            "all ranks must run one release",
                            version, kVersion));
  }
  if (input_[10] != static_cast<char>(other()) || input_[11] != 0) {
    return fail(Code::kProtocol, fmt::format("not a Ringfold peer: it does not act as {}", role_name(other())));
  }
  peer_greeting_ = input_;
  expect(Stage::kNonce, kNonceBytes);
}

void Handshake::read_nonce() {
  peer_greeting_ += input_;
  const bool initiator = role_ == Role::kInitiator;
  if (!hmac(key_.text(),
            {"ringfold session", initiator ? greeting_ : peer_greeting_, initiator ? peer_greeting_ : greeting_},
            session_.data())) {
    return fail(Code::kInternal, "OpenSSL has no HMAC-SHA256");
  }
  if (!initiator) {
    const char size[2] = {static_cast<char>(hello_.size() & 255), static_cast<char>(hello_.size() >> 8)};
    output_ += greeting_ + signed_with(role_, "proof", std::string_view(size, 2));
  }
  expect(Stage::kProof, 2 + kMacBytes);
}

void Handshake::read_proof() {
  const std::string_view size = std::string_view(input_).substr(0, 2);
  if (!verify("proof", size, std::string_view(input_).substr(2))) {
    return fail(Code::kDenied, "the peer does not hold this job's key: both must use one key file");
  }
  const size_t bytes = static_cast<unsigned char>(size[0]) | static_cast<size_t>(static_cast<unsigned char>(size[1]))
                                                                 << 8;
  if (bytes > kMaxHello)
    return fail(Code::kProtocol,
                fmt::format("the peer announces a hello of {} bytes; the limit is {}", bytes, kMaxHello));
  if (role_ == Role::kInitiator) {
    const char own[2] = {static_cast<char>(hello_.size() & 255), static_cast<char>(hello_.size() >> 8)};
    output_ += signed_with(role_, "proof", std::string_view(own, 2)) + signed_with(role_, "hello", hello_);
  }
  expect(Stage::kHello, bytes + kMacBytes);
}

void Handshake::read_hello() {
  const std::string_view hello = std::string_view(input_).substr(0, input_.size() - kMacBytes);
  if (!verify("hello", hello, std::string_view(input_).substr(hello.size()))) {
    return fail(Code::kDenied, "the peer's hello was changed on its way");
  }
  peer_hello_ = hello;
  state_ = State::kDone;
  if (role_ == Role::kAcceptor) output_ += signed_with(role_, "hello", hello_);
}

void Handshake::fail(Code code, std::string message) {
  state_ = State::kFailed;
  status_ = Status(code, std::move(message));
}

std::string Handshake::head() const {
  return std::string(kMagic) + static_cast<char>(kVersion & 255) + static_cast<char>(kVersion >> 8) +
         static_cast<char>(role_) + '\0';
}

// `message` followed by its MAC in the name of `who`.
std::string Handshake::signed_with(Role who, std::string_view purpose, std::string_view message) {
  Mac mac{};
  const std::string_view session(reinterpret_cast<const char*>(session_.data()), session_.size());
  if (!hmac(session, {purpose, ":", role_name(who), ":", message}, mac.data())) {
    fail(Code::kInternal, "OpenSSL has no HMAC-SHA256");
    return {};
  }
  return std::string(message) + std::string(reinterpret_cast<const char*>(mac.data()), mac.size());
}

bool Handshake::verify(std::string_view purpose, std::string_view message, std::string_view proof) {
  const std::string good = signed_with(other(), purpose, message);
  return proof.size() == kMacBytes && good.size() == message.size() + kMacBytes &&
         CRYPTO_memcmp(good.data() + message.size(), proof.data(), kMacBytes) == 0;
}

}  // namespace ringfold::base
