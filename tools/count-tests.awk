# Counts GoogleTest cases in meson's testlog.json (one test program a line, its output in it) and prints
# "N passed, N failed, N skipped". A program that failed without a failed case (a crash, a time limit, a leak found at its end)
# counts as one failure, and one without GoogleTest as one case. Exits 1 when anything failed, or `status` says so.
{
  cases = bad = 0
  n = split($0, lines, /\\n/)
  for (i = 1; i <= n; ++i) {
    if (lines[i] !~ /\([0-9]+ ms\)$/) continue  # the summary lists names again, without their times
    if (lines[i] ~ /\[       OK \] /) { ++passed; ++cases }
    if (lines[i] ~ /\[  SKIPPED \] /) { ++skipped; ++cases }
    if (lines[i] ~ /\[  FAILED  \] /) { ++failed; ++cases; ++bad }
  }
  result = match($0, /"result": "[A-Z]+/) ? substr($0, RSTART + 11, RLENGTH - 11) : "ERROR"
  if (result == "SKIP") { if (cases == 0) ++skipped }
  else if (result == "OK" || result == "EXPECTEDFAIL") { if (cases == 0) ++passed }
  else if (bad == 0) ++failed
}
END {
  printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
  exit failed > 0 || status != 0 || NR == 0
}
