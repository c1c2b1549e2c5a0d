"""The second time point of a cell: transport, time points, profiles, a layer."""
