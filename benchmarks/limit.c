/* The limit: a client in C that does no more than read streams and keep the kernel's times.

   limit PORT STREAMS REQUESTS TOKENS LOG      (as many users as STREAMS, each asks again at once)

   Written to LOG, int64: for each request the serial number that the server gave it (its
   prompt_tokens), when it was sent, the count of its tokens, then the time of each; CLOCK_MONOTONIC
   nanoseconds. Standard output: seconds from the first send to the last end. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  int tail_size;
  int64_t sent, count, *times;
  char tail[512]; /* the last bytes of the answer: usage and end */
} Stream;

static int64_t now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int port, tokens, asked, wanted;

static void ask(int fd, Stream *s) {
  char body[512], data[1024];
  int size = sprintf(body,
                     "{\"model\":\"null\",\"messages\":[{\"role\":\"user\",\"content\":\"request "
                     "%d\"}],\"max_tokens\":%d,\"stream\":true,\"stream_options\":"
                     "{\"include_usage\":true}}",
                     asked++, tokens);
  size = sprintf(data,
                 "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: "
                 "application/json\r\nContent-Length: %d\r\n\r\n%s",
                 port, size, body);
  s->count = s->tail_size = 0;
  s->sent = now(CLOCK_MONOTONIC);
  if (send(fd, data, size, MSG_NOSIGNAL) != size) exit(1);
}

int main(int count, char **words) {
  if (count != 6) return 2;
  port = atoi(words[1]);
  int users = atoi(words[2]);
  wanted = atoi(words[3]);
  tokens = atoi(words[4]);
  FILE *log = fopen(words[5], "wb");
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int epoll_fd = epoll_create1(0), one = 1;
  struct sockaddr_in where = {.sin_family = AF_INET,
                              .sin_port = htons(port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int *fds = calloc(users, sizeof *fds);
  for (int k = 0; k < users; k++) {
    fds[k] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fds[k], (struct sockaddr *)&where, sizeof where)) return 1;
    setsockopt(fds[k], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fds[k], SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
    fcntl(fds[k], F_SETFL, O_NONBLOCK);
  }
  Stream *streams = calloc(fds[users - 1] + 1, sizeof *streams);
  for (int k = 0; k < users; k++) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[k]};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fds[k], &event);
    streams[fds[k]].times = calloc(tokens + 8, sizeof(int64_t));
  }
  int64_t begun = now(CLOCK_MONOTONIC);
  for (int k = 0; k < users && asked < wanted; k++) ask(fds[k], &streams[fds[k]]);
  struct epoll_event found[256];
  static char data[1 << 18];
  char control[128];
  int64_t offset = now(CLOCK_MONOTONIC) - now(CLOCK_REALTIME), ended = 0;
  for (int done = 0; done < wanted;) {
    offset = now(CLOCK_MONOTONIC) - now(CLOCK_REALTIME);
    int n = epoll_wait(epoll_fd, found, 256, 1000);
    for (int k = 0; k < n; k++) {
      int fd = found[k].data.fd;
      Stream *s = &streams[fd];
      struct iovec part = {data, sizeof data};
      struct msghdr message = {.msg_iov = &part,
                               .msg_iovlen = 1,
                               .msg_control = control,
                               .msg_controllen = sizeof control};
      ssize_t size = recvmsg(fd, &message, 0);
      if (size <= 0) return 1;
      int64_t at = 0;
      struct cmsghdr *c = CMSG_FIRSTHDR(&message);
      if (c && c->cmsg_type == SCM_TIMESTAMPNS) {
        struct timespec t;
        memcpy(&t, CMSG_DATA(c), sizeof t);
        at = t.tv_sec * 1000000000LL + t.tv_nsec + offset;
      }
      for (char *event = data;
           (event = memmem(event, data + size - event, "\"content\":\"", 11)) != NULL;) {
        event += 11;
        if (*event != '"' && s->count < tokens) s->times[s->count++] = at;
      }
      int kept = size < 512 ? (int)size : 512;
      memcpy(s->tail, data + size - kept, s->tail_size = kept);
      if (size >= 7 && !memcmp(data + size - 7, "\r\n0\r\n\r\n", 7)) {
        char *serial = memmem(s->tail, s->tail_size, "\"prompt_tokens\":", 16);
        int64_t head[3] = {serial ? atoll(serial + 16) : 0, s->sent, s->count};
        fwrite(head, sizeof *head, 3, log);
        fwrite(s->times, sizeof *s->times, s->count, log);
        done++;
        ended = at;
        if (asked < wanted) ask(fd, s);
      }
    }
  }
  fclose(log);
  printf("%.6f\n", (ended - begun) / 1e9);
  return 0;
}
