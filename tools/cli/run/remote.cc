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
  // setsid makes the rank the leader of a process group. It runs in the foreground, as a shell makes its background
  // children ignore SIGINT; so it has to tell its number through a file. What it leaves behind goes with it.
  return fmt::format(R"sh(mask=$(umask); umask 077
own=$(mktemp -d "${{TMPDIR:-/tmp}}/ringfold-XXXXXX") || exit 3
trap 'rm -rf "$own"' EXIT
IFS= read -r key && printf '%s\n' "$key" >"$own/key" || exit 3
mkfifo "$own/started"
umask "$mask"
cd {} || exit 3
{}export RINGFOLD_KEY_FILE="$own/key"
exec 3<&0
{{ read -r rank <"$own/started"
while IFS= read -r name <&3; do kill -s "$name" -- "-$rank"; done
kill -s KILL -- "-$rank"; }} >/dev/null 2>&1 &
watch=$!
setsid sh -c 'echo $$ >"$0/rank"; echo $$ >"$0/started"; exec "$@"' "$own"{} </dev/null 3<&-
status=$?
kill "$watch"
kill -s KILL -- "-$(cat "$own/rank")" 2>/dev/null
exit "$status")sh",
                     sh_quoted(folder), exports, words);
}

std::vector<std::string> remote_command(const std::string& host, const std::string& script) {
  auto words = ssh_command(host);
  words.push_back("exec sh -c " + sh_quoted(script));
  return words;
}

}  // namespace ringfold::cli
