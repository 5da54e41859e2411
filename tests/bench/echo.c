/*
 * Round trips of 14 bytes, as sockperf's ping-pong, which knows no IPv6 before its version 3.8:
 *
 *   echo serve tcp|udp ADDRESS PORT               until it is killed; of TCP one connection after the other
 *   echo ask tcp|udp ADDRESS PORT SECONDS         prints percentiles in us, as sockperf does
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "address.h"

#define SIZE 14
#define MOST (1 << 22) /* round trips */

static double now_us(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int type_of(const char *protocol)
{
	return strcmp(protocol, "tcp") ? SOCK_DGRAM : SOCK_STREAM;
}

static void at_once(int peer)
{
	int one = 1;

	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void serve_stream(int listening)
{
	char text[SIZE];

	for (;;) {
		int peer = accept(listening, 0, 0);

		if (peer < 0)
			err(1, "accept");
		at_once(peer);
		while (recv(peer, text, SIZE, MSG_WAITALL) == SIZE)
			if (send(peer, text, SIZE, 0) != SIZE)
				warn("send");
		close(peer);
	}
}

static void serve_datagrams(int opened)
{
	char text[SIZE];

	for (;;) {
		struct sockaddr_storage from;
		socklen_t len = sizeof(from);
		ssize_t got = recvfrom(opened, text, SIZE, 0, (void *)&from, &len);

		if (got < 0 || sendto(opened, text, got, 0, (void *)&from, len) != got)
			warn("a datagram");
	}
}

static int by_size(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static void print(float *taken, long count)
{
	const double wanted[] = { 50, 99, 99.9 };

	qsort(taken, count, sizeof(*taken), by_size);
	for (int i = 0; i < 3; i++)
		printf("percentile %.3f = %.3f\n", wanted[i], taken[(long)(wanted[i] / 100 * (count - 1))]);
}

static void ask(int type, const struct address *address, double seconds)
{
	struct timeval patience = { .tv_sec = 2 };
	int peer = connected(address, type);
	float *taken = malloc(MOST * sizeof(*taken));
	double end = now_us() + seconds * 1e6;
	char text[SIZE] = "a question";
	long count = 0;

	if (!taken)
		err(1, "malloc");
	at_once(peer);
	setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	while (count < MOST) {
		double start = now_us();

		if (start >= end)
			break;
		if (send(peer, text, SIZE, 0) != SIZE || recv(peer, text, SIZE, MSG_WAITALL) != SIZE)
			err(1, "no answer");
		taken[count++] = now_us() - start;
	}
	print(taken, count);
}

int main(int argc, char **argv)
{
	int type = argc > 2 ? type_of(argv[2]) : 0;

	if (argc == 5 && !strcmp(argv[1], "serve")) {
		if (type == SOCK_STREAM)
			serve_stream(bound(argv[3], argv[4], type));
		serve_datagrams(bound(argv[3], argv[4], type));
	}
	if (argc == 6 && !strcmp(argv[1], "ask")) {
		struct address address = address_of(argv[3], argv[4]);

		ask(type, &address, atof(argv[5]));
		return 0;
	}
	errx(2, "usage: echo serve tcp|udp ADDRESS PORT | echo ask tcp|udp ADDRESS PORT SECONDS");
}
