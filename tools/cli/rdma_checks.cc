#include "tools/cli/rdma_checks.h"

#include <sys/resource.h>

#include "ringfold/transport.h"
#include "tools/cli/host_facts.h"
#include "transports/ucx/ucx.h"

namespace ringfold::cli {
namespace {

void check_memory(const verbs::Options& options, int ranks, Findings* findings) {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  const std::string limited =
      limit.rlim_cur == RLIM_INFINITY ? "unlimited" : fmt::format("limit {}", memory_text(limit.rlim_cur));
  const size_t lane = static_cast<size_t>(ranks > 1 ? ranks - 1 : 1) * verbs::link_bytes(options);
  const std::string mend =
      "ulimit -l unlimited, or memlock in /etc/security/limits.conf (LimitMEMLOCK= of a service)";
  // One lane to every peer is the least that a job uses; collectives and messages together may use all lanes.
  const size_t all = transport::kLanes * lane;
  if (Status s = verbs::try_memory(all, options); s.ok()) {
    findings->ok("rdma memory",
                 fmt::format("{} could be locked: enough for {} ranks ({})", memory_text(all), ranks, limited));
  } else if (verbs::try_memory(lane, options).ok()) {
    findings->warn("rdma memory",
                   fmt::format("{}; jobs of {} ranks that use all lanes need that much", s.message(), ranks), mend);
  } else {
    findings->fail("rdma memory", verbs::try_memory(lane, options).message(),
                   mend + "; less is needed with RINGFOLD_SLOTS or RINGFOLD_SLOT lowered");
  }
}

}  // namespace

bool check_verbs(const verbs::Options& options, int ranks, bool required, Findings* findings) {
  const verbs::Survey survey = verbs::survey(options);
  auto bad = [&](const std::string& what, const verbs::Finding& f) {
    required ? findings->fail(what, f.text, f.mend) : findings->warn(what, f.text, f.mend);
  };
  if (survey.ports.empty()) {
    const std::string otherwise = "unset RINGFOLD_TRANSPORT, or set it to auto: jobs then use what there is";
    if (required || !survey.none.mend.empty()) {
      bad("rdma", {survey.none.text, survey.none.mend.empty() ? otherwise : survey.none.mend});
    } else {
      findings->ok("rdma", "none: " + survey.none.text);
    }
    return false;
  }
  for (const verbs::PortReport& p : survey.ports) {
    const std::string what = "rdma " + p.name();
    if (!p.usable) {
      // Of several ports one is enough.
      const verbs::Finding& f = p.findings.front();
      required && !survey.usable() ? findings->fail(what, f.text, f.mend) : findings->warn(what, f.text, f.mend);
      continue;
    }
    const std::string found =
        fmt::format("{}, {:g} Gbit/s, packets of {} bytes, GID {}", p.link, p.gbps, p.mtu, fmt::join(p.gids, ", "));
    if (p.findings.empty()) findings->ok(what, found);
    for (const verbs::Finding& f : p.findings) findings->warn(what, f.text, f.mend);
  }
  if (survey.usable()) check_memory(options, ranks, findings);
  return survey.usable();
}

void check_ucx(bool required, Findings* findings) {
  const auto ucx = transport::ucx::presence();
  if (!ucx.there) {
    if (required) return findings->fail("ucx", ucx.text, "or unset RINGFOLD_TRANSPORT: nothing else needs UCX");
    return findings->ok("ucx", "none: " + ucx.text);
  }
  const auto remarks = transport::ucx::remarks();
  if (remarks.empty()) findings->ok("ucx", ucx.text);
  for (const auto& r : remarks) findings->warn("ucx", r.text, r.mend);
}

}  // namespace ringfold::cli
