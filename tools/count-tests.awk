# Counts GoogleTest cases in meson's testlog.json (one test program a line, its output in it) and prints
# "N passed, N failed, N skipped", after the first lines of what failed. A program that failed without a failed case (a crash, a time limit, a leak found at its end)
# counts as one failure, and one without GoogleTest as one case. Exits 1 when anything failed, or `status` says so.
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
    if (bad == 0) ++failed
    name = match($0, /"name": "[^"]*/) ? substr($0, RSTART + 9, RLENGTH - 9) : "?"
    failures = failures "FAILED " name " (" result ")\n" said
  }
}
END {
  printf "%s", failures
  printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
  exit failed > 0 || status != 0 || NR == 0
}
