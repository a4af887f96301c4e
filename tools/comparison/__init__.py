"""The parts of tools/compare: what is started (setups), how it is run and watched (launch), in which order (rounds),
what the times say (figures), and how that is shown (report, picture)."""
