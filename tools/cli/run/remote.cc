#include "tools/cli/run/remote.h"

#include <fmt/format.h>

#include "tools/cli/run/hosts.h"

namespace ringfold::cli {

std::string remote_script(const std::vector<std::string>& command, const std::vector<std::string>& environment,
                          const std::string& folder) {
  std::string exports, words;
  for (const std::string& entry : environment) {
    const auto at = entry.find('=');
    exports += fmt::format("export {}={}\n", entry.substr(0, at), sh_quoted(entry.substr(at + 1)));
  }
  for (const std::string& word : command) words += fmt::format(" {}", sh_quoted(word));
  // setsid makes the rank the leader of a process group, as it is a background child and so leads none yet.
  return fmt::format(R"(mask=$(umask); umask 077
own=$(mktemp -d "${{TMPDIR:-/tmp}}/ringfold-XXXXXX") || exit 3
trap 'rm -rf "$own"' EXIT
IFS= read -r key && printf '%s\n' "$key" >"$own/key" || exit 3
umask "$mask"
cd {} || exit 3
{}export RINGFOLD_KEY_FILE="$own/key"
exec 3<&0
setsid{} </dev/null 3<&- &
rank=$!
{{ while IFS= read -r name <&3; do kill -s "$name" -- "-$rank"; done; kill -s KILL -- "-$rank"; }} >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$rank"; status=$?
kill "$watch" 2>/dev/null
kill -s KILL -- "-$rank" 2>/dev/null
exit "$status")",
                     sh_quoted(folder), exports, words);
}

std::vector<std::string> remote_command(const std::string& host, const std::string& script) {
  auto words = ssh_command(host);
  words.push_back("exec sh -c " + sh_quoted(script));
  return words;
}

}  // namespace ringfold::cli
