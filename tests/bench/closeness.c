/* SPDX-License-Identifier: GPL-2.0 */
/*
 * closeness FIRST SECOND: ns that a cache line takes from one CPU to the other and back.
 * closeness FIRST SECOND MS: for so long they wake one another through pipes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 5, ROUNDS = 4000 };

static _Alignas(128) atomic_int turn;
static int there[2], back[2];

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set)) {
		perror("sched_setaffinity");
		exit(1);
	}
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void await(int whose)
{
	while (atomic_load_explicit(&turn, memory_order_acquire) != whose)
		;
}

static void *answer_lines(void *cpu)
{
	pin(*(int *)cpu);
	for (int i = 0; i < BATCHES * ROUNDS; i++) {
		await(1);
		atomic_store_explicit(&turn, 0, memory_order_release);
	}
	return 0;
}

/* The best batch: no interrupt came in between. */
static double round_trip(void)
{
	double best = 1e9;

	for (int batch = 0; batch < BATCHES; batch++) {
		double began = now(), took;

		for (int i = 0; i < ROUNDS; i++) {
			atomic_store_explicit(&turn, 1, memory_order_release);
			await(0);
		}
		took = (now() - began) / ROUNDS;
		if (took < best)
			best = took;
	}
	return best;
}

static void *answer_bytes(void *cpu)
{
	char byte;

	pin(*(int *)cpu);
	while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
		;
	return 0;
}

static void wake_for(double ns)
{
	double end = now() + ns;
	char byte = 0;

	while (now() < end)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			exit(1);
	close(there[1]);
}

int main(int argc, char **argv)
{
	int second, waking = argc == 4;
	pthread_t other;

	if (argc < 3 || argc > 4 || pipe(there) || pipe(back))
		return 2;
	second = atoi(argv[2]);
	pin(atoi(argv[1]));
	if (pthread_create(&other, 0, waking ? answer_bytes : answer_lines, &second))
		return 1;
	if (waking)
		wake_for(atof(argv[3]) * 1e6);
	else
		printf("%.1f\n", round_trip());
	return pthread_join(other, 0);
}
