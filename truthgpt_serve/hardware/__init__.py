"""From the section `hardware` of a configuration to what Ray reserves."""
