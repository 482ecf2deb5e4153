/* Preloaded into TFF's worker process, which binds the unspecified address and so offers an
 * unauthenticated executor to the whole network: every such bind() becomes a bind to loopback. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

int bind(int descriptor, const struct sockaddr *address, socklen_t length) {
  static bind_function real_bind;
  if (!real_bind) real_bind = (bind_function)dlsym(RTLD_NEXT, "bind");

  struct sockaddr_storage copy;
  if (address && length <= sizeof copy) {
    memcpy(&copy, address, length);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&copy;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&copy;
    if (copy.ss_family == AF_INET && length >= sizeof *v4 && v4->sin_addr.s_addr == INADDR_ANY) {
      v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      return real_bind(descriptor, (struct sockaddr *)&copy, length);
    }
    if (copy.ss_family == AF_INET6 && length >= sizeof *v6 && IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr)) {
      inet_pton(AF_INET6, "::ffff:127.0.0.1", &v6->sin6_addr); /* IPv4-mapped: clients dial 127.0.0.1 */
      return real_bind(descriptor, (struct sockaddr *)&copy, length);
    }
  }
  return real_bind(descriptor, address, length);
}
