"""What all commands share: flags, errors in one line, configuration files, inputs."""
