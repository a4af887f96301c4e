#include "transports/ucx/context.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <vector>

#include "base/log.h"
#include "transports/ucx/ucx.h"

extern char** environ;  // NOLINT: POSIX's name

namespace ringfold::transport::ucx {
namespace {

// soft-RoCE's devices hang on a network device, and say on which.
bool has_soft_roce() {
  std::error_code none;
  for (const auto& device : std::filesystem::directory_iterator("/sys/class/infiniband", none)) {
    if (std::filesystem::exists(device.path() / "parent", none)) return true;
  }
  return false;
}

// What is set where the environment says nothing.
struct Addition {
  Setting setting;
  // UCX reads what belongs to one of its transports when it opens a device, from the environment only.
  bool of_a_transport;
};
const std::vector<Addition>& additions() {
  static const std::vector<Addition> all = [] {
    std::vector<Addition> result = {
        {{"UCX_KEEPALIVE_INTERVAL", "1s", "a lost peer is missed in a second, not in twenty"}, false}};
    if (has_soft_roce()) {
      result.push_back(
          {{"UCX_UD_VERBS_ETH_DGID_CHECK", "n", "soft-RoCE: UCX drops what comes to IPv4 addresses otherwise"},
           true});
    }
    std::erase_if(result, [](const Addition& a) { return std::getenv(a.setting.name.c_str()) != nullptr; });
    return result;
  }();
  return all;
}

bool is_addition(const std::string& name) {
  return std::any_of(additions().begin(), additions().end(),
                     [&](const Addition& a) { return a.setting.name == name; });
}

}  // namespace

std::vector<Setting> settings() {
  std::vector<Setting> result;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text(*entry);
    const auto equals = text.find('=');
    if (text.starts_with("UCX_") && equals != text.npos && !is_addition(text.substr(0, equals)))
      result.push_back({text.substr(0, equals), text.substr(equals + 1), "environment"});
  }
  std::sort(result.begin(), result.end(), [](auto& a, auto& b) { return a.name < b.name; });
  for (const Addition& a : additions()) result.push_back(a.setting);
  return result;
}

Presence presence() {
  auto ucx = library();
  if (!ucx.ok()) return {false, ucx.status().message()};
  return {true, fmt::format("UCX {}", (*ucx)->ucp_get_version_string())};
}

std::vector<Remark> remarks() {
  std::vector<Remark> result;
  if (const char* check = std::getenv("UCX_UD_VERBS_ETH_DGID_CHECK");
      check != nullptr && has_soft_roce() && *check != 'n') {
    result.push_back({fmt::format("UCX_UD_VERBS_ETH_DGID_CHECK={}: over soft-RoCE UCX then drops what comes to IPv4 "
                                  "addresses, and ends the process after 30 s",
                                  check),
                      "unset it: Ringfold sets it to n there"});
  }
  const std::string tls = std::getenv("UCX_TLS") == nullptr ? "" : std::getenv("UCX_TLS");
  bool reliable = false, others = tls.empty() || tls.starts_with('^');
  for (size_t begin = 0; begin < tls.size();) {
    const size_t end = std::min(tls.find(',', begin), tls.size());
    const std::string name = tls.substr(begin, end - begin);
    const bool wires_itself = name == "self" || name == "sysv" || name == "posix" || name == "cma";
    if (name.starts_with("rc_") || name.starts_with("dc")) {
      reliable = true;
    } else if (!wires_itself) {
      others = true;
    }
    begin = end + 1;
  }
  if (reliable && !others) {
    result.push_back({fmt::format("UCX_TLS={}: none of these can set up the connections of RDMA", tls),
                      "add ud_v (ud_x with mlx5)"});
  }
  return result;
}

std::string words_of(const Library& ucx, ucs_status_t status) {
  std::string& words = Listening::words();
  std::string text = words.empty() ? fmt::format("{}", ucx.ucs_status_string(status))
                                   : fmt::format("{} ({})", ucx.ucs_status_string(status), words);
  words.clear();
  return text;
}

Result<std::shared_ptr<const Context>> Context::shared() {
  static std::mutex mutex;
  static std::weak_ptr<const Context> current;
  std::lock_guard lock(mutex);
  if (auto context = current.lock()) return context;
  std::shared_ptr<Context> context(new Context);
  RINGFOLD_TRY(context->open());
  current = context;
  return std::shared_ptr<const Context>(context);
}

Status Context::open() {
  auto loaded = library();
  if (!loaded.ok()) return loaded.status();
  ucx_ = *loaded;
  const Listening listening;
  Listening::words().clear();
  ucp_config_t* config = nullptr;
  if (ucs_status_t s = ucx_->ucp_config_read(nullptr, nullptr, &config); s != UCS_OK) {
    return {Code::kInvalid, fmt::format("UCX cannot read its settings (UCX_*): {}", words_of(*ucx_, s))};
  }
  for (const auto& [setting, of_a_transport] : additions()) {
    if (of_a_transport) {
      ::setenv(setting.name.c_str(), setting.value.c_str(), 1);
    } else if (ucx_->ucp_config_modify(config, setting.name.c_str() + 4, setting.value.c_str()) != UCS_OK) {
      log::info("this UCX has no setting {}", setting.name);
    }
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  params.name = "ringfold";
  const ucs_status_t s = ucx_->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
  ucx_->ucp_config_release(config);
  if (s == UCS_OK) return {};
  context_ = nullptr;
  const char* tls = std::getenv("UCX_TLS");
  const char* devices = std::getenv("UCX_NET_DEVICES");
  return {
      Code::kUnavailable,
      fmt::format("UCX finds nothing to talk over: {}. UCX_TLS is {}, UCX_NET_DEVICES is {}; `ucx_info -d` lists "
                  "what there is",
                  words_of(*ucx_, s), tls == nullptr ? "not set" : tls, devices == nullptr ? "not set" : devices)};
}

Context::~Context() {
  if (context_ != nullptr) ucx_->ucp_cleanup(context_);
}

}  // namespace ringfold::transport::ucx
