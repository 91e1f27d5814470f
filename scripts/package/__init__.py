"""From a build tree to a wheel: built, finished, proven, with its SBOM."""
