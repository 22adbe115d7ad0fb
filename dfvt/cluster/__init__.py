"""Ray: processes, placement and retries. The only part of dfvt that imports it."""
