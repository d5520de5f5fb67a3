"""The ground: errors, registry, configuration, contracts, devices, paths, logging."""
