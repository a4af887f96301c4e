# Counts GoogleTest cases in meson's testlog.json (one test program a line, its output in it) and prints
# "N passed, N failed, N skipped", after the first lines of what failed. A program that failed without a failed case (a crash, a time limit, a leak found at its end)
# counts as one failure, and its last lines are repeated; one without GoogleTest is one case. Exits 1 when anything failed, or `status` says so.

# The last lines of what the program wrote to `stream`, "stdout" or "stderr".
function end_of(stream,    from, end, text, all, i, n, last) {
  from = index($0, "\"" stream "\": \"")
  if (from == 0) return ""
  text = substr($0, from + length(stream) + 5)
  end = index(text, "\", \"")  # inside of the text quotation marks are escaped
  text = substr(text, 1, end > 0 ? end - 1 : length(text) - 2)
  n = split(text, all, /\\n/)
  while (n > 0 && all[n] == "") --n
  for (i = n > 10 ? n - 9 : 1; i <= n; ++i) last = last "  " stream ": " substr(all[i], 1, 300) "\n"
  return last
}
{
  cases = bad = 0
  said = ""
  n = split($0, lines, /\\n/)
  for (i = 1; i <= n; ++i) {
    if (lines[i] ~ /: Failure$/) shown = 12  # lines of it that are repeated at the end
    if (lines[i] ~ /\[  (FAILED |     OK) \] /) shown = 0
    if (shown-- > 0) said = said "  " substr(lines[i], 1, 300) "\n"
    if (lines[i] !~ /\([0-9]+ ms\)$/) continue  # the summary lists names again, without their times
    if (lines[i] ~ /\[       OK \] /) { ++passed; ++cases }
    if (lines[i] ~ /\[  SKIPPED \] /) { ++skipped; ++cases }
    if (lines[i] ~ /\[  FAILED  \] /) { ++failed; ++cases; ++bad }
  }
  shown = 0
  result = match($0, /"result": "[A-Z]+/) ? substr($0, RSTART + 11, RLENGTH - 11) : "ERROR"
  if (result == "SKIP") { if (cases == 0) ++skipped }
  else if (result == "OK" || result == "EXPECTEDFAIL") { if (cases == 0) ++passed }
  else {
    if (bad == 0) {
      ++failed
      said = end_of("stdout") end_of("stderr")
    }
    name = match($0, /"name": "[^"]*/) ? substr($0, RSTART + 9, RLENGTH - 9) : "?"
    failures = failures "FAILED " name " (" result ")\n" said
  }
}
END {
  printf "%s", failures
  printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
  exit failed > 0 || status != 0 || NR == 0
}
