"""What installs ovnet on hosts, and what is made for that."""
