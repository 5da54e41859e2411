/*
 * TCP connections one after the other, as netperf's TCP_CRR: connect, a byte there, a byte back, close.
 *
 *   crr serve ADDRESS PORT                until it is killed
 *   crr connect ADDRESS PORT SECONDS      prints connections per second
 *
 * The server closes first, so that the client's ports are free again at once.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "address.h"

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void serve(const char *host, const char *port)
{
	int listening = bound(host, port, SOCK_STREAM);
	char byte;

	for (;;) {
		int peer = accept(listening, 0, 0);

		if (peer < 0)
			err(1, "accept");
		if (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) != 1)
			warn("write");
		close(peer);
	}
}

static void transact(const struct address *address)
{
	int peer = connected(address, SOCK_STREAM);
	char byte = 'x';

	if (write(peer, &byte, 1) != 1 || read(peer, &byte, 1) != 1 || read(peer, &byte, 1) != 0)
		err(1, "the connection broke");
	close(peer);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		serve(argv[2], argv[3]);
	if (argc == 5 && !strcmp(argv[1], "connect")) {
		struct address address = address_of(argv[2], argv[3]);
		double start = now(), end = start + atof(argv[4]);
		long count = 0;

		for (; now() < end; count++)
			transact(&address);
		printf("%.3f\n", count / (now() - start));
		return 0;
	}
	errx(2, "usage: crr serve ADDRESS PORT | crr connect ADDRESS PORT SECONDS");
}
