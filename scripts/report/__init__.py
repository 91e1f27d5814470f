"""What a build leaves beside its wheel: report, page, timeline, trace."""
