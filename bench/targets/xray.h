/* LLVM XRay's flight recorder must be chosen and started by the program itself; without -DXRAY nothing of this is there. */
#ifdef XRAY
#define NO_XRAY __attribute__((xray_never_instrument))
#define ALWAYS_XRAY __attribute__((xray_always_instrument))

/* From xray/xray_interface.h and xray/xray_log_interface.h, which are C++. */
int __xray_patch(void);
int __xray_log_select_mode(const char *mode);
int __xray_log_init_mode(const char *mode, const char *options);

/* Of XRayPatchingStatus. */
#define XRAY_PATCHED 1

NO_XRAY static void start_xray(void) {
  /* No filter by time, which would drop nearly all of what is measured; room for a burst. */
  if (__xray_log_select_mode("xray-fdr") != 0 ||
      __xray_log_init_mode("xray-fdr", "buffer_size=1048576:buffer_max=256:func_duration_threshold_us=0") < 0 ||
      __xray_patch() != XRAY_PATCHED)
    abort();
}
#else
#define NO_XRAY
#define ALWAYS_XRAY
static void start_xray(void) {}
#endif
