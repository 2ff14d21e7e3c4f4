"""What starts the servers and clusters that the project runs on."""
