/* What the files of the load generator share. */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define BIG (256u << 10)  /* bytes asked of one recv */
#define BATCH (64u << 10) /* bytes packed into one send */

struct options {
    const char *host, *user, *password, *sub_user, *sub_password, *topic, *filter, *layout, *tag, *ca, *cert, *key;
    long port, version, publishers, subscribers, qos, size, size_max, messages, window, burst, rate, parallel, ahead, pid;
    long connections, keepalive, subscribe, users, tls, websocket, persistent, store;
    double seconds, warmup, idle, drain;
};
extern struct options opt;

/* A histogram of nanoseconds: 64 steps to each doubling, so a value is read back within 1.6 %. */
struct histogram {
    uint64_t steps[64 * 64];
    uint64_t count, max;
};

static inline void record(struct histogram *h, uint64_t ns) {
    unsigned octave = ns < 64 ? 0 : (unsigned)(63 - __builtin_clzll(ns)) - 5;
    h->steps[octave * 64 + (octave ? (ns >> (octave - 1)) - 64 : ns)]++;
    h->count++;
    if (ns > h->max) h->max = ns;
}

uint64_t now_ns(void);
double percentile_us(const struct histogram *h, double share);
void print_histogram(const char *name, const struct histogram *h);
double cpu_seconds(long pid); /* user and system time of a process with all its threads; of this one for 0 */
long memory_kib(long pid, const char *field);
/* Ends a report: what `messages` cost the broker, and the generator. */
void print_cost(double broker_cpu, double self_cpu, double seconds, uint64_t messages);
void fill_template(char *out, size_t room, const char *pattern, long index);
void give_up(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
int open_socket(void); /* a connect under way: non-blocking, TCP_NODELAY */

int run_pubsub(void);
int run_offline(void);
int run_connect(void);
int run_idle(void);
int run_retained(void);
int run_sessions(void);
int run_subscriptions(void);
int run_storm(void);
int run_reflect(void);

#endif
