/*
 * TCP connections one after the other, as netperf's TCP_CRR: connect, a byte there, a byte back, close.
 *
 *   crr serve PORT                        until it is killed
 *   crr connect ADDRESS PORT SECONDS      prints connections per second
 *
 * The server closes first, so that the client's ports are free again at once.
 */
#include <arpa/inet.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in address_of(const char *host, const char *port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		errx(2, "%s is no IPv4 address", host);
	return address;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void serve(const char *port)
{
	struct sockaddr_in address = address_of("0.0.0.0", port);
	int one = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
	char byte;

	setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listening, (void *)&address, sizeof(address)) || listen(listening, 128))
		err(1, "port %s", port);
	for (;;) {
		int peer = accept(listening, 0, 0);

		if (peer < 0)
			err(1, "accept");
		if (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) != 1)
			warn("write");
		close(peer);
	}
}

static void transact(const struct sockaddr_in *address)
{
	int peer = socket(AF_INET, SOCK_STREAM, 0);
	char byte = 'x';

	if (peer < 0 || connect(peer, (const void *)address, sizeof(*address)))
		err(1, "connect");
	if (write(peer, &byte, 1) != 1 || read(peer, &byte, 1) != 1 || read(peer, &byte, 1) != 0)
		err(1, "the connection broke");
	close(peer);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "connect")) {
		struct sockaddr_in address = address_of(argv[2], argv[3]);
		double start = now(), end = start + atof(argv[4]);
		long count = 0;

		for (; now() < end; count++)
			transact(&address);
		printf("%.3f\n", count / (now() - start));
		return 0;
	}
	errx(2, "usage: crr serve PORT | crr connect ADDRESS PORT SECONDS");
}
