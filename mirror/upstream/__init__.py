"""What registries and blob stores are asked, and with which credentials."""
