"""One thin script a DVC stage, and `repro`, which runs them all."""
