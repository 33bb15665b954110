/* A client that talks to itself through the broker by the clock while a scenario does something else. */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>

void start_probe(void);         /* connect, subscribe; it sends as soon as it is ready */
int tick_probe(int wait_ms);    /* send what is due; how long the next turn may wait then */
void stop_probe(void);          /* no more messages; wait a moment for those under way */
void print_probe(void);         /* its counts and latencies, as members of a JSON object */
bool probe_ready(void);

#endif
