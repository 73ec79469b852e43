"""Flow matching mathematics: paths, schedules, guidance, samplers and long video."""
