"""What every command needs: flags, logs, process tuning."""
